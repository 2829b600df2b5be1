"""The data module: loaders from shards, one integer of state, errors before the first step."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from inflate3d.data.samples.video_info import probe_video
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.targets import MaskTarget
from inflate3d.training.datamodule import DataModule, DatasetConfig
from jsonargparse import ArgumentParser
from torch import nn
from warm_process import WarmProcess

DATASETS: dict[str, dict[str, Any]] = {
    "motion": {"batch_size": 4, "sample": {"num_frames": 4, "crop_size": 16, "short_side": 16}},
    "blobs": {
        "batch_size": 2,
        "weight": 2,
        "sample": {"patch_size": [8, 8, 8]},
        "augment": "augment/small_volume.yaml",
    },
}
KINDS = {"motion": "video_classification", "blobs": "volume_segmentation"}
TOY = {"num_train": 12, "num_val": 5, "size": 16, "num_frames": 6}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    for name, kind in KINDS.items():
        build_shards(Toy(kind=kind, **TOY), root / name, max_samples_per_shard=5, progress=False)
    return root


def module(root: Path, **arguments: Any) -> DataModule:
    datasets: Any = arguments.pop("datasets", DATASETS)
    return DataModule(str(root), datasets, **{"seed": 3, **arguments})


def keys(data: DataModule, count: int) -> list[tuple[str, list[str]]]:
    return [(b.dataset, b.keys) for b in islice(data.train_dataloader(), count)]


# ----------------------------------------------------------------------------------------------------------- loading


def test_it_works_without_a_trainer(root):
    data = module(root).prepare()
    batches = list(islice(data.train_dataloader(), 3))
    assert [(b.dataset, len(b), b.micro_batch) for b in batches] == [("blobs", 2, 0), ("motion", 4, 1), ("blobs", 2, 2)]
    assert batches[1].image.shape == (4, 3, 4, 16, 16)


def test_one_loader_holds_the_validation_splits_of_all_datasets(root):
    batches = list(module(root).prepare().val_dataloader())
    assert [(b.dataset, len(b)) for b in batches] == [("motion", 4), ("motion", 1), *[("blobs", 1)] * 5]
    assert batches[-1].image.shape == (1, 1, 16, 16, 16)  # a whole volume, not a patch


def test_evaluation_may_be_smaller(root):
    small = {**DATASETS, "motion": {**DATASETS["motion"], "eval_batch_size": 1, "max_eval_samples": 2}}
    batches = list(module(root, datasets=small).val_dataloader())
    assert [len(b) for b in batches if b.dataset == "motion"] == [1, 1]


def test_missing_shards_are_built_where_the_config_says_how(tmp_path, capsys):
    build = {"class_path": "Toy", "init_args": {"kind": "volume_classification", **TOY}}
    data = module(tmp_path, datasets={"shapes": {"batch_size": 4, "build": build}}).prepare()
    assert data.manifests["shapes"].num_samples("train") == 12
    written = (tmp_path / "shapes" / "manifest.json").stat().st_mtime_ns
    module(tmp_path, datasets={"shapes": {"batch_size": 4, "build": build}}).prepare()
    assert (tmp_path / "shapes" / "manifest.json").stat().st_mtime_ns == written


def test_shards_of_another_build_are_not_taken_for_those_wanted(tmp_path):
    def prepare(**changes: Any) -> None:
        build = {"class_path": "Toy", "init_args": {"kind": "volume_classification", **TOY, **changes}}
        module(tmp_path, datasets={"shapes": {"batch_size": 4, "build": build}}).prepare()

    prepare()
    prepare()
    with pytest.raises(InputError, match=r"tmp.*shapes were built otherwise: num_val was 5, is now 4\. Remove"):
        prepare(num_val=4)
    shutil.rmtree(tmp_path / "shapes")
    prepare(num_val=4)
    shutil.rmtree(tmp_path / "shapes")
    build_shards(Toy(kind="volume_classification", **TOY), tmp_path / "shapes", progress=False)
    prepare(num_val=3)  # of shards that a command has built nothing is known, and nothing is asked


def test_videos_are_encoded_anew_where_the_build_says_so(tmp_path, capsys):
    build = {"class_path": "Toy", "init_args": {"kind": "video_classification", **TOY, "size": 24}}
    heights = []
    for name, more in (("kept", {}), ("small", {"encode": {"gop": 2, "short_side": 16}})):
        module(tmp_path, datasets={name: {"batch_size": 1, "build": {**build, **more}}}).prepare_data()
        reader = ShardReader(tmp_path / name, Manifest.load(tmp_path / name), "train")
        heights.append(probe_video(bytes(reader.sample(0, 0).decode()["video"])).height)
    assert heights == [24, 16]
    wrong = {**build, "encode": {"gopp": 2}}
    with pytest.raises(InputError, match=r"encode.gopp: .*'gopp'"):
        module(tmp_path, datasets={"x": {"batch_size": 1, "build": wrong}}).prepare_data()


def test_loaders_leave_the_generator_of_training_alone(root):
    before = torch.get_rng_state()
    list(islice(module(root, num_workers=1).train_dataloader(), 2))
    assert torch.equal(before, torch.get_rng_state())


def test_rows_tell_what_a_run_will_see(root):
    data = module(root)
    data.tasks_of = {"blobs": ["segment", "count"]}
    row = data.rows()[1]
    assert (row["dataset"], row["sample"], row["train"], row["val"], row["test"]) == ("blobs", "8x8x8", 12, 5, 0)
    assert (row["task"], row["media"]) == ("segment+count", "volume")
    assert row["share"] == pytest.approx(2 / 3)
    assert module(root).windows == {"blobs": (8, 8, 8)}


def test_the_seed_of_the_run_is_the_default(root, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    assert keys(module(root, seed=None), 6) == keys(module(root, seed=3), 6)
    assert keys(module(root, seed=4), 6) != keys(module(root, seed=3), 6)


def test_a_config_file_gives_dataclasses(root):
    parser = ArgumentParser()
    parser.add_class_arguments(DataModule, "data")
    parsed = parser.parse_object(
        {"data": {"root": str(root), "datasets": deepcopy(DATASETS)}}
    )  # it changes what it gets
    data = parser.instantiate(parsed).data
    assert isinstance(data.datasets["blobs"], DatasetConfig)
    assert data.mixture.shares["blobs"] == pytest.approx(2 / 3)


# ------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("consumed", [1, 5, 13])
def test_a_loaded_state_goes_on_where_the_trainer_was(root, consumed, workers):
    first = module(root)
    whole = keys(first, consumed + 5)
    first.advance(consumed - 1)
    state = json.loads(json.dumps(first.state_dict()))  # nothing but plain values
    second = module(root, num_workers=workers)
    second.load_state_dict(state)
    assert keys(second, 5) == whole[consumed:]


def test_a_state_of_other_shards_is_refused(root, tmp_path):
    state = module(root).state_dict()
    for name, kind in KINDS.items():
        build_shards(
            Toy(kind=kind, **TOY, seed=int(name == "blobs")), tmp_path / name, max_samples_per_shard=5, progress=False
        )
    words = r"shards of blobs: \d shards with other bytes, index or split \(train-000000.tar, .*\. Restore"
    with pytest.raises(InputError, match=words) as caught:
        module(tmp_path).load_state_dict(state)
    assert "motion" not in str(caught.value)


def test_what_changed_in_a_manifest_is_said(root, tmp_path):
    shutil.copytree(root, tmp_path / "shards")
    state = json.loads(json.dumps(module(root).state_dict()))
    folder = tmp_path / "shards" / "blobs"
    before = Manifest.load(folder)
    first, second, third, *rest = before.shards
    more = [replace(first, file=f"train-{i:06d}.tar") for i in range(7, 12)]
    card = replace(before.card, targets={"mask": MaskTarget(("background", "ball", "else"))})
    for manifest, words in (
        (replace(before, shards=(first, third, *rest)), r"shards of blobs: 1 shard removed \(train-000001.tar\)\."),
        (
            replace(before, shards=(first, second, third, *rest, *more)),
            r"5 shards added \(train-000007.tar, .* and 2 more",
        ),
        (replace(before, shards=(second, first, third, *rest)), "the same shards in another order"),
        (replace(before, shards=(replace(first, sha256="0" * 64), second, third, *rest)), "1 shard with other bytes"),
        (replace(before, card=card), r"shards of blobs: card: targets\."),
    ):
        manifest.save(folder)
        with pytest.raises(InputError, match=words):
            module(tmp_path / "shards").load_state_dict(state)
    before.save(folder)
    module(tmp_path / "shards").load_state_dict(state)


def test_a_temperature_counts_passes_and_is_part_of_the_schedule(root):
    assert module(root).mixture.shares["blobs"] == pytest.approx(2 / 3)
    even = {name: {**d, "weight": 1} for name, d in DATASETS.items()}
    data = module(root, datasets=even, temperature=1)  # 12 samples each: 3 micro-batches of 4, 6 of 2
    assert data.mixture.shares == {"motion": pytest.approx(1 / 3), "blobs": pytest.approx(2 / 3)}
    assert module(root, datasets=even, temperature=2).mixture.shares["blobs"] == pytest.approx(
        2**0.5 / (1 + 2**0.5), abs=1e-3
    )
    with pytest.raises(InputError, match=r"data.temperature: None before, 1 now"):
        data.load_state_dict(module(root, datasets=even).state_dict())
    with pytest.raises(InputError, match=r"data.temperature is 0"):
        module(root, temperature=0)


def test_a_small_dataset_is_passed_several_times_while_a_large_one_is_once(root):
    datasets = {name: {**d, "weight": 1} for name, d in DATASETS.items()}
    datasets["motion"]["weight"] = 3
    seen = Counter((name, key) for name, found in keys(module(root, datasets=datasets), 24) for key in found)
    assert {count for (name, _), count in seen.items() if name == "blobs"} == {1}  # 6 of 24 micro-batches: one pass
    assert {count for (name, _), count in seen.items() if name == "motion"} == {6}  # 18 of 24: six passes of 3
    assert len(seen) == 24


def test_a_state_of_another_schedule_is_refused(root):
    state = module(root).state_dict()
    changed = {**DATASETS, "blobs": {**DATASETS["blobs"], "batch_size": 6}}
    with pytest.raises(InputError, match=r"data.datasets.blobs.batch_size: 2 before, 6 now"):
        module(root, datasets=changed).load_state_dict(state)
    with pytest.raises(InputError, match=r"data.seed: 3 before, 4 now"):
        module(root, seed=4).load_state_dict(state)
    with pytest.raises(InputError, match=r"dataset blobs: absent now"):
        module(root, datasets={"motion": DATASETS["motion"]}).load_state_dict(state)


class ToyNet(pl.LightningModule):
    """Notes the keys that it sees; counts them in the data module as the platform's callback does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[list[str]] = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.keys)
        return self.layer(batch.image.mean().view(1)).sum()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.trainer.datamodule.advance(batch.micro_batch)

    def validation_step(self, batch, batch_idx):
        self.seen.append(["val", *batch.keys])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(root: Path, folder: Path, steps: int, *, workers: int = 0, resume: Path | None = None) -> ToyNet:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=4,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = ToyNet()
    trainer.fit(net, datamodule=module(root, num_workers=workers), ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return net


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_trainer_goes_on_inside_an_epoch_and_workers_may_change(root, tmp_path, workers):
    whole = fit(root, tmp_path, 13).seen
    fit(root, tmp_path, 6, workers=workers)
    resumed = fit(root, tmp_path, 13, workers=1 - workers, resume=tmp_path / "last.ckpt").seen

    def trained(seen: list[list[str]]) -> list[list[str]]:
        return [keys for keys in seen if keys[0] != "val"]

    assert trained(resumed) == trained(whole)[6:]
    assert sum(keys[0] == "val" for keys in whole) == 3 * 7  # each of the 7 batches at steps 4, 8 and 12


_RANK = """
import json, sys
from itertools import islice
import torch.distributed as dist
from inflate3d.training.datamodule import DataModule

if __name__ == "__main__":
    root, store, rank, world_size, workers, datasets = sys.argv[1:]
    dist.init_process_group("gloo", init_method="file://" + store, rank=int(rank), world_size=int(world_size))
    data = DataModule(root, json.loads(datasets), seed=3, num_workers=int(workers)).prepare()
    train = [[b.dataset, b.keys] for b in islice(data.train_dataloader(), 12)]
    print(json.dumps({"train": train, "val": [[b.dataset, b.keys] for b in data.val_dataloader()]}))
    dist.barrier()
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_share_out_the_same_global_batches(root, tmp_path, workers):
    (tmp_path / "rank.py").write_text(_RANK)
    given = [json.dumps(DATASETS)]
    processes = [
        WarmProcess(tmp_path / "rank.py", root, tmp_path / "store", r, 2, workers, *given, cwd=tmp_path)
        for r in range(2)
    ]
    ranks = [json.loads(p.done().stdout.splitlines()[-1]) for p in processes]
    joined = [(a[0], a[1] + b[1]) for a, b in zip(ranks[0]["train"], ranks[1]["train"], strict=True)]
    assert joined == keys(module(root), 12)
    evaluated = sorted((d, key) for rank in ranks for d, batch in rank["val"] for key in batch)
    assert evaluated == sorted((d, f"val_{i:04d}") for d in DATASETS for i in range(5))


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ({"blobs": {"batch_size": 2, "weigth": 1}}, "unknown key 'weigth'; close names: 'weight'"),
        ({"blobs": {"weight": 1}}, "batch_size is missing"),
        ({"blobs": {"batch_size": 0}}, "data.datasets.blobs.batch_size is 0"),
        ({"blobs": {"batch_size": 2, "weight": 0}}, "weight is 0.*set it to null"),
        ({}, "data.datasets is empty"),
        ({"blobs": {"batch_size": 2, "sample": {"patch": [8, 8, 8]}}}, "data.datasets.blobs.sample.patch: unknown key"),
        ({"motion": {"batch_size": 2}}, "data.datasets.motion.sample: num_frames, crop_size missing"),
        ({"liver": {"batch_size": 2}}, "platform shards build"),
        ({"blobs": {"batch_size": 2, "build": {"class_path": "Toyy"}}}, None),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_before_loading(root, datasets, words):
    if words is None:  # shards exist: what would build them is not asked
        datasets["blobs"]["sample"] = {"patch_size": [8, 8, 8]}
        module(root, datasets=datasets).prepare()
        return
    with pytest.raises(InputError, match=words):
        module(root, datasets=datasets).prepare()


def test_a_split_without_samples_is_refused(root, tmp_path):
    with pytest.raises(InputError, match="no dataset has a test split: motion, blobs"):
        module(root).test_dataloader()
    toy = Toy(kind="volume_classification", **TOY)
    cases = [case for case in toy.cases() if case.split == "val"]
    build_shards(toy, tmp_path / "shapes", cases=cases, progress=False)
    data = module(tmp_path, datasets={"shapes": {"batch_size": 2}}).prepare()
    with pytest.raises(InputError, match=r"data.datasets.shapes: no sample in split 'train'"):
        data.train_dataloader()
    assert Manifest.load(tmp_path / "shapes").num_samples("val") == 5


def test_no_validation_split_means_no_loader(tmp_path):
    toy = Toy(kind="volume_classification", **TOY)
    cases = [case for case in toy.cases() if case.split == "train"]
    build_shards(toy, tmp_path / "shapes", cases=cases, progress=False)
    assert module(tmp_path, datasets={"shapes": {"batch_size": 2}}).val_dataloader() == []
