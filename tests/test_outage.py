"""What cannot be read for now is waited for, and then ends the run saved: never other samples, never other weights."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.shards.writer import build_shards
from inflate3d.data.stream.batches import EvalStream, TrainStream
from inflate3d.datasets.toy import Toy
from inflate3d.models import BackboneConfig
from inflate3d.remote.outcomes import Unreachable
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import (
    CheckpointWriter,
    DataModule,
    MultiTaskModule,
    find_checkpoint,
    trainer_defaults,
    with_default_callbacks,
)
from inflate3d.training.run.folder import read_state
from loopback_servers import faulty
from nightly import some
from states import assert_equal_state

Whole = tuple[dict[str, Any], Path, "ToyNotes"]
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "DataModule", "train_means")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    toy = Toy(kind="volume_classification", num_train=9, num_val=6, size=16)
    build_shards(toy, root / "shapes", max_samples_per_shard=2, progress=False)
    return root


class ToyNotes(pl.Callback):
    """Notes the keys of each micro-batch that was trained."""

    def __init__(self) -> None:
        self.keys: dict[int, list[str]] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.keys[batch.micro_batch] = batch.keys


def fit(
    root: Path | str, run: Path, notes: ToyNotes, *, window: int = 2, workers: int = 0, **data: Any
) -> dict[str, Any]:
    """Fit 6 steps, validated every 2 steps; return what the last checkpoint holds."""
    torch.set_num_threads(1)
    module = MultiTaskModule(
        BackboneConfig(name="test_resnet", stems={"mask": 1}, drop_path_rate=0.1),
        {"shape": VolumeClassification(datasets=["shapes"], dropout=0.2)},
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    )
    module_data = DataModule(str(root), {"shapes": {"batch_size": 2}}, seed=0, num_workers=workers, **data)
    options = {"accelerator": "cpu", "devices": 1, "max_steps": 6, "accumulate_grad_batches": window}
    options |= {"val_check_interval": 2 * window, "log_every_n_steps": 4, "default_root_dir": str(run)}
    trainer = pl.Trainer(
        **{**trainer_defaults(), **options},
        callbacks=with_default_callbacks([CheckpointWriter(keep_last=9), notes]),
    )
    found = find_checkpoint(run)
    trainer.fit(module, datamodule=module_data, ckpt_path=found and str(found.state))
    return torch.load(find_checkpoint(run).state, weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Whole]:
    """By window of accumulation: the last state, the run's folder and the keys of a fit that nothing disturbs."""

    @cache
    def calm(window: int) -> Whole:
        run, notes = tmp_path_factory.mktemp(f"whole{window}"), ToyNotes()
        return fit(shards, run, notes, window=window), run, notes

    return calm


def break_at(monkeypatch: pytest.MonkeyPatch, stream: type, method: str, at: int) -> None:
    """Let the batch of this number, and all after it, be out of reach."""
    whole = getattr(stream, method)

    def broken(self: Any, number: int) -> Any:
        if number >= at:
            raise Unreachable("https://***@host/set: cannot be reached (HTTP 503). Run the same again")
        return whole(self, number)

    monkeypatch.setattr(stream, method, broken)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("window", "at", "step"),
    some(
        [(2, 7, 2), (1, 4, 2), (2, 0, 0), (2, 3, 0), (2, 5, 1), (2, 6, 2), (2, 8, 3), (2, 11, 4), (1, 2, 0), (1, 5, 3)],
        [(2, 7, 2)],
    ),
)
def test_an_outage_ends_the_run_saved_and_it_goes_on_to_the_same_weights(
    shards: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, at: int, step: int
) -> None:
    """at: the first micro-batch that cannot be read; step: the last that was done and is saved."""
    notes = ToyNotes()
    with monkeypatch.context() as outage:
        break_at(outage, TrainStream, "batch", at)
        told = rf"step {step} of 6 is saved" if step else "nothing was trained since the start|HTTP 503"
        with pytest.raises(Unreachable, match=told):
            fit(shards, tmp_path, notes, window=window)
    saved = find_checkpoint(tmp_path)
    assert (saved.step if saved else 0) == step
    if step:
        assert read_state(tmp_path)["phase"] == "stopped"
    assert_same_end(fit(shards, tmp_path, notes, window=window), tmp_path, notes, undisturbed(window))


def assert_same_end(ended: dict[str, Any], folder: Path, notes: ToyNotes, calm: Whole) -> None:
    assert notes.keys == calm[2].keys
    assert_equal_state({k: calm[0][k] for k in PARTS}, {k: ended[k] for k in PARTS})
    assert (folder / "metrics.csv").read_bytes() == (calm[1] / "metrics.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("at", some([(0,), (1,), (2,)], [(0,)]))
def test_an_outage_within_a_validation_is_saved_before_it(
    shards: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    notes = ToyNotes()
    with monkeypatch.context() as outage:
        break_at(outage, EvalStream, "__getitem__", at)
        with pytest.raises(Unreachable, match="step 2 of 6 is saved"):
            fit(shards, tmp_path, notes)
    assert_same_end(fit(shards, tmp_path, notes), tmp_path, notes, undisturbed(2))


@pytest.mark.slow
@pytest.mark.parametrize("workers", some([(1,), (2,)], [(2,)]))
def test_an_outage_in_a_loading_process_is_told_apart_from_damage(
    shards: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    notes = ToyNotes()
    with monkeypatch.context() as outage:
        break_at(outage, TrainStream, "batch", 7)
        with pytest.raises(Unreachable, match=r"^https://\*\*\*@host/set: .* step 2 of 6 is saved$"):
            fit(shards, tmp_path, notes, workers=workers)
    assert_same_end(fit(shards, tmp_path, notes, workers=workers), tmp_path, notes, undisturbed(2))


@pytest.mark.slow
@pytest.mark.nightly
def test_the_last_step_is_saved_though_it_cannot_be_validated(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, asked = EvalStream.__getitem__, []

    def broken(self: Any, number: int) -> Any:
        asked.append(number)
        if len(asked) > 6:  # three batches each for steps 2, 4 and 6
            raise Unreachable("https://host/set: cannot be reached (HTTP 503). Run the same again")
        return batch(self, number)

    monkeypatch.setattr(EvalStream, "__getitem__", broken)
    with pytest.raises(Unreachable, match=r"step 6 of 6 is saved, but for its validation \(platform validate\)"):
        fit(shards, tmp_path, ToyNotes(), window=1)
    assert (find_checkpoint(tmp_path).step, find_checkpoint(tmp_path).score) == (6, None)


# ------------------------------------------------------------------------------------------------- a server with faults

FAULTS = ["503", "429 0", "drop", "cut", "reset", "503 1", "short", "long", "stall", "page", "500", "408", "chunked"]


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "workers"), some([(0, 0), (1, 2), (2, 0), (3, 0), (4, 1), (5, 0), (6, 0)], [(0, 0)]))
def test_faults_of_a_server_change_neither_keys_nor_weights(
    shards: Path, undisturbed: Any, tmp_path: Path, seed: int, workers: int
) -> None:
    notes, chance = ToyNotes(), random.Random(seed)
    faults = [chance.choice(FAULTS) if chance.random() < 0.6 else "" for _ in range(60)]
    with faulty(shards, faults, names=(".tar", ".json")) as (url, handler):
        ended = fit(url, tmp_path / "run", notes, workers=workers, cache_dir=str(tmp_path / "cache"))
        assert len(handler.faults) < 50
    assert_same_end(ended, tmp_path / "run", notes, undisturbed(2))
