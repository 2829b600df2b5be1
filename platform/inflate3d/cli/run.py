"""One run: LightningCLI turns the checked config into trainer, module and data, and runs them."""

from __future__ import annotations

import contextlib
import copy
import logging
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import yaml
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from inflate3d.cli.config import Config
from inflate3d.cli.first_process import is_first_process
from inflate3d.cli.parser import ConfigParser
from inflate3d.cli.report import report_at_end
from inflate3d.cli.summary import RunSummary
from inflate3d.cli.wandb_run import log_config, settle_wandb
from inflate3d.errors import InputError
from inflate3d.training import (
    Checkpoint,
    DataModule,
    MultiTaskModule,
    Trainer,
    check_same_config,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
    write_config,
)
from inflate3d.training.run.lock import one_writer
from inflate3d.training.run.standing import next_commands
from inflate3d.training.steering.cluster import cluster_plugins
from inflate3d.training.steering.stop_signals import RunStopped

# Lightning's advice that does not apply: the loader is endless by design and resumes by our own integer.
_NOT_FOR_US = (
    ".*does not have many workers.*",
    ".*IterableDataset.*has `__len__` defined.*",
    ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ".*`srun` command is available on your system but is not used.*",
    ".*You have overridden `transfer_batch_to_device` in `LightningModule`.*",
)


class Run:
    """A merged, checked config, ready to run; the methods have the names of the commands."""

    def __init__(self, config: Config, *, instantiate: bool = True) -> None:
        _quiet()
        if instantiate:
            settle_wandb(config)
        self._cli = _Cli(config, instantiate=instantiate)
        if instantiate:
            self.trainer, self.module, self.data = self._cli.trainer, self._cli.model, self._cli.datamodule
            self.folder = Path(self.trainer.default_root_dir)

    def dump(self) -> str:
        """Return the whole config as YAML, defaults included."""
        return self._cli.parser.dump(self._cli.config, skip_unset=False)

    def fit(self, *, say_next: bool = True) -> None:
        """Train, continue training, or only repeat the last steps if the run has finished; the one writer there.

        say_next: end with the commands that go on from here.
        """
        with one_writer(self.folder) if self.trainer.is_global_zero else contextlib.nullcontext():
            self._fit(say_next)

    def _fit(self, say_next: bool) -> None:
        checkpoint = self._start()
        if self.trainer.is_global_zero:
            write_config(self.folder, yaml.safe_load(self.dump()))
            log_config(self.trainer.loggers, yaml.safe_load(self.dump()))
        if checkpoint and checkpoint.step >= self.trainer.max_steps:
            print(f"this run has finished: {checkpoint.step} of {self.trainer.max_steps} steps in {self.folder}")
        else:
            self._train(str(checkpoint.state) if checkpoint else None)
            if self.trainer.is_global_zero and self.trainer.global_step < self.trainer.max_steps:
                steps = f"{self.trainer.global_step} of {self.trainer.max_steps}"
                print(f"ended early, by trainer.max_time or a callback: step {steps} is saved")
        if self.trainer.is_global_zero:
            self._end(say_next)

    def _train(self, ckpt_path: str | None) -> None:
        try:
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=ckpt_path)
        except RunStopped:
            raise
        except SystemExit as stop:
            # Lightning's answer to Ctrl-C, after it has closed bars and workers.
            raise (KeyboardInterrupt if self.trainer.interrupted else stop) from None

    def validate(self) -> None:
        """Print the metrics of a checkpoint on the validation splits."""
        self.trainer.validate(self.module, datamodule=self.data, ckpt_path=str(self._weights().state))

    def test(self) -> None:
        """Print the metrics of a checkpoint on the test splits."""
        self.trainer.test(self.module, datamodule=self.data, ckpt_path=str(self._weights().state))

    def scores(self, split: Literal["val", "test"]) -> dict[str, float]:
        """Return the metrics of the best checkpoint on a split, by name."""
        measure = self.trainer.validate if split == "val" else self.trainer.test
        best = find_checkpoint(self.folder, "best")
        assert best is not None, "a run that was fitted has a checkpoint"
        (values,) = measure(self.module, datamodule=self.data, ckpt_path=str(best.state), verbose=False)
        return {name: float(value) for name, value in values.items() if name != "step"}

    def _start(self) -> Checkpoint | None:
        """Return the checkpoint to continue from: 1. what ckpt_path says  2. none yet: start fresh."""
        which = self._cli.config.get("ckpt_path")
        if which is None:
            if find_checkpoint(self.folder):
                raise InputError(
                    f"{self.folder} already holds a run; continue it: --ckpt_path last, "
                    "or start another: --trainer.default_root_dir ANOTHER_FOLDER"
                )
            return None
        checkpoint = find_checkpoint(self.folder, which)
        if checkpoint and checkpoint.path.is_relative_to(self.folder):
            check_same_config(self.folder, yaml.safe_load(self.dump()), complete=with_defaults)
        return checkpoint

    def _weights(self) -> Checkpoint:
        checkpoint = find_checkpoint(self.folder, self._cli.config.get("ckpt_path") or "last")
        if checkpoint is None:
            raise InputError(f"{self.folder} has no checkpoint; train first, or give --ckpt_path PATH")
        return checkpoint

    def _end(self, say_next: bool) -> None:
        """Draw the pictures, publish, and print as the last line how to load the weights."""
        config = self._cli.config
        self._release()
        if config.get("pictures"):
            from inflate3d.evaluation import draw_run

            print(f"pictures: {draw_run(self.folder)}")
        report_at_end(self.folder)
        if config.get("publish"):
            from inflate3d.publishing import publish_run

            published = publish_run(self.folder, config["publish"])
            print(f"published: {published.folder or published.address}\nload it anywhere:")
            print(load_line(published.address))
        elif say_next:
            has_heads = any(task.target is not None for task in self.module.tasks.values())
            print(next_commands(str(self.folder), has_heads=has_heads))

    def _release(self) -> None:
        """Let go of gradients and the optimiser's states: the nets that are loaded from here on take their room."""
        self.trainer.strategy.optimizers, self.trainer.strategy.lr_scheduler_configs = [], []
        self.module.zero_grad(set_to_none=True)


def with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return a whole config as this version would write it: arguments that it lacks have their defaults."""
    # A copy: parsing changes what it parses.
    whole: dict[str, Any] = yaml.safe_load(Run(Config(copy.deepcopy(config)), instantiate=False).dump())
    return whole


def load_line(address: str) -> str:
    """Return a shell command that loads published weights and prints the output's shape; it works in any folder."""
    code = (
        "import torch, inflate3d; "
        f"model = inflate3d.create_model('{address}', pretrained=True, num_classes=0).eval(); "
        "print(model(torch.zeros(1, model.in_chans_expected, 16, 64, 64)).shape)"
    )
    return f"{shlex.quote(sys.executable)} -c {_double_quoted(code)}"


class _Cli(LightningCLI):
    """LightningCLI over a mapping that is already merged and checked."""

    def __init__(self, config: Config, *, instantiate: bool) -> None:
        self._merged = config
        self._instantiate = instantiate
        super().__init__(
            MultiTaskModule,
            DataModule,
            save_config_callback=None,
            trainer_class=Trainer,
            trainer_defaults=trainer_defaults(),
            seed_everything_default=0,
            parser_class=ConfigParser,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, default="last", help="last, best, or the folder of a checkpoint"
        )
        parser.add_argument("--publish", type=str | None, default=None, help="publish there after the fit")
        parser.add_argument("--pictures", type=bool, default=False, help="draw pictures after the fit")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, ConfigParser)
        parser.config = self._merged
        self.config = parser.parse_object(self._merged.values)

    def instantiate_classes(self) -> None:
        if self._instantiate:
            super().instantiate_classes()

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if self._merged.get("pictures"):
            from inflate3d.evaluation.pictures.sample_pictures import SamplePictures

            given = [*given, SamplePictures()]
        progress_bar = config.get("enable_progress_bar") is not False
        config["callbacks"] = [RunSummary(), *with_default_callbacks(given, progress_bar=progress_bar)]
        config["plugins"] = cluster_plugins(config)
        return cast(Trainer, super()._instantiate_trainer(config, callbacks))


def _quiet() -> None:
    """Show our own log lines plainly, once; from other ranks and from Lightning only real warnings."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("inflate3d").setLevel(logging.INFO if is_first_process() else logging.WARNING)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _NOT_FOR_US:
        warnings.filterwarnings("ignore", message)


def _double_quoted(code: str) -> str:
    for character in '\\"$`':
        code = code.replace(character, "\\" + character)
    return f'"{code}"'
