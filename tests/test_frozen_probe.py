"""The frozen probe beside a training: it changes nothing, says what a transfer says, and no row is lost or repeated."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.evaluation import FrozenProbe
from inflate3d.evaluation.pictures.curves import draw_curves
from inflate3d.evaluation.transfer import probes
from inflate3d.evaluation.transfer.arms import arms_for
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.features import FeatureCache
from inflate3d.evaluation.transfer.frozen import frozen_features, measure_frozen
from inflate3d.evaluation.transfer.held_out import AnswerBook, score
from inflate3d.evaluation.transfer.protocol import Protocol
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import BackboneConfig
from inflate3d.publishing import publish_run
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    EMA,
    CheckpointWriter,
    DataModule,
    MultiTaskModule,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.run.metrics_csv import read_metrics
from matplotlib.figure import Figure
from nightly import nightly_but

KEY = "probe/held/1/accuracy"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, seed, count in (("shapes", 0, 6), ("held", 1, 20)):
        toy = Toy(kind="volume_classification", num_train=count, num_val=6, size=16, seed=seed)
        build_shards(toy, root / name, progress=False)
    return root


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(probes, "PENALTIES", (1.0, 0.01))


def probe(**options: Any) -> FrozenProbe:
    small = {"every_steps": 2, "seeds": (0,), "max_samples": 12}
    return FrozenProbe(**{"dataset": "held", "task": "volume_classification", **small, **options})


def fit(shards: Path, folder: Path, *callbacks: Any, max_steps: int = 4, **options: Any) -> MultiTaskModule:
    """Train a net with statistics of a domain and drop path, from where the folder stands."""
    config = BackboneConfig(name="test_resnet", stems={"mask": 1}, drop_path_rate=0.2)
    task = VolumeClassification(datasets=["shapes"], dropout=0.2)
    module = MultiTaskModule(config, {"shape": task}, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2))
    settings = {**trainer_defaults(), "accelerator": "cpu", "devices": 1, "max_steps": max_steps}
    settings |= {"default_root_dir": str(folder), "limit_val_batches": 0, "log_every_n_steps": 1}
    settings["callbacks"] = with_default_callbacks([CheckpointWriter(every_steps=1, keep_last=9), *callbacks])
    found = find_checkpoint(folder)
    data = DataModule(str(shards), {"shapes": {"batch_size": 2}}, seed=0)
    pl.Trainer(**{**settings, **options}).fit(module, datamodule=data, ckpt_path=found and str(found.state))
    return module


def probed(folder: Path) -> dict[int, float]:
    """Return the probe by step; a step that comes twice fails."""
    rows = [row for row in read_metrics(folder / "metrics.csv") if KEY in row]
    found = {int(row["step"]): row[KEY] for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.mark.slow
def test_a_run_with_a_probe_has_the_very_weights_of_one_without(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without = fit(shards, tmp_path / "without", max_steps=3)
    with caplog.at_level(logging.INFO, logger="inflate3d"):
        beside = fit(shards, tmp_path / "with", probe(every_steps=1), max_steps=3)
    one, other = without.state_dict(), beside.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert list(probed(tmp_path / "with")) == [0, 1, 2, 3]
    assert f"step 3: probe of held/1/accuracy {probed(tmp_path / 'with')[3]:.3f}" in caplog.text
    states = [torch.load(find_checkpoint(tmp_path / f).state, weights_only=True) for f in ("without", "with")]  # type: ignore[union-attr]
    flat = [torch.cat([p["exp_avg"].flatten() for p in s["optimizer_states"][0]["state"].values()]) for s in states]
    assert torch.equal(*flat)
    rows = [[r for r in read_metrics(tmp_path / f / "metrics.csv") if "lr" in r] for f in ("without", "with")]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_probe_says_what_a_transfer_of_the_published_weights_says(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path / "run", EMA(decay=0.5), probe(seeds=(0, 1), fractions=(0.5, 1.0), metric="auroc"))
    row = next(
        r for r in read_metrics(tmp_path / "run" / "metrics.csv") if r["step"] == 4 and "probe/held/1/auroc" in r
    )
    publish_run(tmp_path / "run", str(tmp_path / "w"), which="last")
    options: dict[str, Any] = {"metric": "auroc", "fractions": (0.5, 1.0), "seeds": (0, 1), "modes": ("probe",)}
    options |= {"max_train": 12, "max_test": 12, "recalibration_batches": 1}
    target = Target(shards, Protocol("held", "volume_classification", **options))
    (arm,) = [a for a in arms_for([f"local-dir:{tmp_path / 'w'}"], target.card) if a.name == "w"]
    backbone = build_module(arm, target, seed=0).backbone
    found = frozen_features(backbone, target, FeatureCache(tmp_path / "features"))
    for fraction in (0.5, 1.0):
        results = [measure_frozen(target, found, mode="probe", fraction=fraction, seed=s) for s in (0, 1)]
        values = torch.tensor([result["test"]["total"]["auroc"] for result in results]).double()
        assert row[f"probe/held/{fraction:g}/auroc"] == pytest.approx(float(values.mean()), abs=1e-4)
        if fraction < 1:
            assert row[f"probe/held/{fraction:g}/auroc/std"] == pytest.approx(float(values.std()), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", nightly_but([1, 0, 2, 3], 1))
def test_a_run_that_goes_on_repeats_no_probe_and_loses_none(shards: Path, tmp_path: Path, stopped: int) -> None:
    """Killed after a step's probe: before its checkpoint is written, or with it."""
    fit(shards, tmp_path / "whole", probe())

    class ToyKill(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            if trainer.global_step == stopped + 1:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fit(shards, tmp_path / "halves", probe(), ToyKill())
    assert (found := find_checkpoint(tmp_path / "halves")) is None or found.step == stopped
    fit(shards, tmp_path / "halves", probe())
    assert probed(tmp_path / "halves") == probed(tmp_path / "whole")
    assert list(probed(tmp_path / "halves")) == [0, 2, 4]


@pytest.mark.slow
def test_accumulated_steps_are_probed_once(shards: Path, tmp_path: Path) -> None:
    fit(shards, tmp_path, probe(every_steps=1), max_steps=2, accumulate_grad_batches=2)
    assert list(probed(tmp_path)) == [0, 1, 2]


def test_what_it_reads_is_bounded_and_holds_every_class(shards: Path) -> None:
    protocol = Protocol("held", "volume_classification", modes=("probe",), max_train=9, max_test=4, val_fraction=0.4)
    target, whole = (
        Target(shards, protocol),
        Target(shards, Protocol("held", "volume_classification", val_fraction=0.4)),
    )
    assert (len(whole.fit), len(whole.choice), len(whole.test)) == (12, 8, 6)
    assert 9 <= len(target.fit) <= 11
    assert {s.label for s in target.fit} == {s.label for s in whole.fit}
    assert {s.key for s in target.fit} < {s.key for s in whole.fit}
    assert len(target.test) == 4
    assert "max_train" not in whole.protocol.to_dict()  # so that cells measured before are read


def test_what_cannot_be_probed_is_refused_before_the_first_step(shards: Path) -> None:
    run = SimpleNamespace(tasks_of={"shapes": ["shape"]})
    data, plain = SimpleNamespace(root=shards), SimpleNamespace()

    def set_up(callback: FrozenProbe, *, strategy: Any = plain, before: bool = True) -> None:
        callbacks = [EMA(), callback] if before else [callback, EMA()]
        trainer = SimpleNamespace(strategy=strategy, callbacks=callbacks, datamodule=data)
        callback.setup(trainer, run, "fit")

    set_up(probe())
    for callback, options, message in (
        (probe(), {"before": False}, "FrozenProbe stands before EMA"),
        (probe(), {"strategy": SimpleNamespace(stage=3)}, "copies whole weights, which SimpleNamespace shards"),
        (probe(domain="shape"), {}, "unknown domain 'shape'; close names: 'shapes'"),
        (probe(dataset="none"), {}, "FrozenProbe: .*none"),
        (probe(metric="acuracy"), {}, "unknown metric 'acuracy'; close names: 'accuracy'"),
    ):
        with pytest.raises(InputError, match=message):
            set_up(callback, **options)
    with pytest.raises(InputError, match="every_steps is 0"):
        probe(every_steps=0)
    with pytest.raises(InputError, match=r"FrozenProbe: --fractions: 2 is not a share"):
        probe(fractions=(2.0,))


def test_a_rank_that_measures_alone_waits_for_no_other(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(shards, Protocol("held", "volume_classification", modes=("probe",)))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)  # a gather would fail: there is no group
    book, sure = AnswerBook(target), torch.eye(len(target.target.names))
    book.add([str(i) for i in range(len(sure))], sure, torch.arange(len(sure)))
    assert book.close().total["accuracy"] == score(target, sure, torch.arange(len(sure))) == 1


def test_curves_show_the_probe(tmp_path: Path) -> None:
    figure = Figure()
    rows = [{"step": 0.0, KEY: 0.25}, {"step": 2.0, "train/loss": 1.0}, {"step": 2.0, KEY: 0.5, f"{KEY}/std": 0.1}]
    draw_curves(figure, rows)
    (line,) = figure.axes[1].lines
    assert line.get_label() == "probe: held/1/accuracy"
    assert line.get_xydata().tolist() == [[0, 0.25], [2, 0.5]]  # type: ignore[union-attr]
