"""One run: the checked config becomes trainer, module and data through LightningCLI, and is carried out."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from inflate3d.cli.config import Config
from inflate3d.errors import InputError
from inflate3d.training import DataModule, MultiTaskModule, trainer_defaults


class Run:
    """A merged, checked config made ready; the methods are named as the commands are."""

    def __init__(self, config: Config, *, instantiate: bool = True) -> None:
        _quiet()
        self._cli = _Cli(config, instantiate=instantiate)

    def dump(self) -> str:
        """Return the whole config as YAML, defaults included."""
        return self._cli.parser.dump(self._cli.config, skip_unset=False)


class _Parser(LightningArgumentParser):
    """jsonargparse's parser, whose error is one short InputError instead of a usage of some hundred lines."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise InputError(_innermost(message)) from ex


class _Cli(LightningCLI):
    """LightningCLI over a mapping that is merged and checked already."""

    def __init__(self, config: Config, *, instantiate: bool) -> None:
        self._values = config.values
        self._instantiate = instantiate
        super().__init__(
            MultiTaskModule,
            DataModule,
            save_config_callback=None,
            trainer_defaults=trainer_defaults(),
            seed_everything_default=0,
            parser_class=_Parser,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="last, best, or a checkpoint's path")
        parser.add_argument("--publish", type=str | None, default=None, help="publish there once the fit has ended")
        parser.add_argument(
            "--pictures", type=bool, default=False, help="draw curves and samples once the fit has ended"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_object(self._values)

    def instantiate_classes(self) -> None:
        if self._instantiate:
            super().instantiate_classes()
