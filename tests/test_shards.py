"""Shards: any WebDataset reader reads them, the bytes are reproducible, builds go on, and damage is found."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample
from inflate3d.data import BrokenSample, Manifest, ShardReader, build_shards, check_shards
from inflate3d.errors import InputError
from inflate3d.targets import MaskTarget

CARD = DatasetCard(
    name="toy",
    media="volume",
    title="Toy",
    modality="ct",
    targets={"mask": MaskTarget(("background", "blob"))},
    url="https://example.org",
    licence="CC0-1.0",
    commercial_use=True,
    weights_may_be_published=True,
    citation="none",
    input=InputSpec(("ct",), (2.0, 1.0, 1.0), "RAS", Intensity()),
)


class ToyVolumes(AbstractDataset):
    """Volumes made from their number; those in `broken` cannot be read."""

    base_card = card = CARD

    def __init__(
        self, count: int = 23, broken: tuple[int, ...] = (), log: Path | None = None, delay_s: float = 0
    ) -> None:
        self.count, self._broken, self._log, self._delay_s = count, broken, log, delay_s

    def cases(self) -> list[Case]:
        return [Case(f"case_{i:03d}", "val" if i % 5 == 4 else "train", i, f"patient_{i}") for i in range(self.count)]

    def read(self, case: Case) -> RawSample:
        time.sleep(self._delay_s)
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{case.key}\n")
        if case.source in self._broken:
            raise InputError(f"{case.key} is broken")
        rng = np.random.default_rng(case.source)
        image = rng.integers(-1000, 1000, (1, 6, 7, 5 + case.source % 3)).astype(np.int16)
        targets = {"mask": (image[0] > 500).astype(np.uint8)}
        return RawSample(image, targets=targets, spacing_mm=(2, 1, 1), affine=np.eye(4).tolist())

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


def build(folder: Path, dataset: AbstractDataset | None = None, **options: Any) -> Manifest:
    options = {"max_samples_per_shard": 4, "progress": False, **options}
    return build_shards(dataset or ToyVolumes(), folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def every_sample(folder: Path, split: str | None = None) -> dict[str, dict[str, Any]]:
    reader = ShardReader(folder, Manifest.load(folder), split)
    raw = [reader.sample(s, i) for s, e in enumerate(reader.entries) for i in range(e.samples)]
    return {r.key: r.decode() for r in raw}


# ------------------------------------------------------------------------------------------------------------ format


def test_every_sample_comes_back_from_its_shard(tmp_path: Path) -> None:
    dataset, manifest = ToyVolumes(), build(tmp_path)
    found = every_sample(tmp_path)
    assert list(found) == [c.key for s in ("train", "val") for c in dataset.cases() if c.split == s]
    for case in dataset.cases():
        raw, sample = dataset.read(case), found[case.key]
        assert raw.image is not None
        np.testing.assert_array_equal(sample["image"], raw.image)
        np.testing.assert_array_equal(sample["mask"], raw.targets["mask"])
        assert sample["image"].dtype == np.int16
        assert sample["image"].flags.writeable  # torch.from_numpy warns of memory that is not
        record = sample["json"]
        assert (record["spacing_mm"], record["group"], record["targets"]) == ([2, 1, 1], case.group, {})
        assert record["measured"] == {"mask": np.bincount(raw.targets["mask"].ravel(), minlength=2).tolist()}
        assert record["shape"] == list(raw.image.shape)
    assert [e.samples for e in manifest.entries("train")] == [4, 4, 4, 4, 3]
    assert [e.samples for e in manifest.entries("val")] == [4]


def test_plain_webdataset_and_tar_read_the_shards(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    urls = [str(tmp_path / e.file) for e in manifest.entries("train")]
    found = {s["__key__"]: s for s in wds.WebDataset(urls, shardshuffle=False).decode()}
    expected = every_sample(tmp_path, "train")
    assert list(found) == list(expected)
    for key, sample in expected.items():
        np.testing.assert_array_equal(found[key]["image.npy"], sample["image"])
        np.testing.assert_array_equal(found[key]["mask.npy"], sample["mask"])
        assert found[key]["json"] == sample["json"]
    listed = subprocess.run(["tar", "tf", urls[0]], capture_output=True, encoding="utf-8", check=True).stdout.split()
    assert listed[:4] == ["case_000.image.npy", "case_000.mask.npy", "case_000.json", "case_001.image.npy"]


def test_the_index_names_the_bytes_of_every_member(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    for entry in manifest.shards:
        index, tar = json.loads((tmp_path / entry.index).read_text()), (tmp_path / entry.file).read_bytes()
        assert index["format"] == "inflate3d-index/1"
        for key, members in index["samples"]:
            for suffix, offset, size, _ in members:
                assert tar[offset - 512 :].startswith(f"{key}.{suffix}".encode())
                if suffix == "json":
                    json.loads(tar[offset : offset + size])


def test_statistics_equal_a_count_by_hand(tmp_path: Path) -> None:
    statistics, train = build(tmp_path).statistics, every_sample(tmp_path, "train").values()
    assert statistics["samples_measured"] == len(train)
    shapes = np.array([s["image"].shape for s in train])
    assert statistics["shape"]["median"] == np.median(shapes, 0).tolist()
    assert statistics["targets"]["mask"]["class_samples"]["blob"] == sum(bool(s["mask"].any()) for s in train)
    means = [s["image"].mean() for s in train]
    np.testing.assert_allclose(statistics["intensity"]["mean"], np.median(means), rtol=1e-5)


def test_a_shard_is_closed_by_its_bytes_too(tmp_path: Path) -> None:
    manifest = build(tmp_path, max_samples_per_shard=100, max_bytes_per_shard=10_000)
    assert len(manifest.shards) > 3
    assert all(e.bytes < 10_000 + 10_240 + 5_000 for e in manifest.shards)


# -------------------------------------------------------------------------------------------- reproducible, restartable


@pytest.fixture
def importable(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> type[ToyVolumes]:
    """ToyVolumes from a module that worker processes can import too."""
    folder = tmp_path_factory.mktemp("module")
    head = """
        from __future__ import annotations
        import time
        from pathlib import Path
        from typing import Any
        import numpy as np
        from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample
        from inflate3d.errors import InputError
        """
    card = f"CARD = DatasetCard.from_dict({CARD.to_dict()!r})\n"
    module = folder / "toy_volumes_for_workers.py"
    module.write_text("\n".join([textwrap.dedent(head), card, inspect.getsource(ToyVolumes)]), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, module.stem, raising=False)
    return importlib.import_module(module.stem).ToyVolumes


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path, importable: type[ToyVolumes]) -> None:
    build(tmp_path / "none", importable(broken=(3,)), max_rejects=1)
    build(tmp_path / "two", importable(broken=(3,)), max_rejects=1, num_workers=2)
    assert contents(tmp_path / "none") == contents(tmp_path / "two")


def test_a_bug_in_a_dataset_is_no_reject(tmp_path: Path, importable: type[ToyVolumes]) -> None:
    for workers in (0, 2):
        dataset = importable()
        dataset._broken = None  # type: ignore[assignment]
        with pytest.raises(TypeError) as caught:
            build(tmp_path / str(workers), dataset, num_workers=workers)
        assert "case_000" in "".join(caught.value.__notes__)


def test_a_second_build_reads_nothing_and_changes_nothing(tmp_path: Path) -> None:
    build(tmp_path / "out")
    before, log = contents(tmp_path / "out"), tmp_path / "log"
    build(tmp_path / "out", ToyVolumes(log=log))
    assert contents(tmp_path / "out") == before
    assert not log.exists()


def test_a_damaged_shard_alone_is_built_again(tmp_path: Path) -> None:
    build(tmp_path / "out")
    before, log = contents(tmp_path / "out"), tmp_path / "log"
    flip_bit(tmp_path / "out" / "train-000001.tar", 3000)
    build(tmp_path / "out", ToyVolumes(log=log))
    assert contents(tmp_path / "out") == before
    assert len(log.read_text().split()) == 4


def test_a_mended_case_comes_in_on_the_next_build(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        build(tmp_path / "out", ToyVolumes(broken=(6,)))
    build(tmp_path / "out")
    build(tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


class ToyListed(ToyVolumes):
    """Cases whose source says more than their number: a file, a label, and an object of no meaning."""

    def __init__(self, root: str, labels: tuple[Any, ...]) -> None:
        super().__init__(len(labels))
        self._root, self._labels = root, labels

    def cases(self) -> list[Case]:
        rows = [(f"{self._root}/scan_{i}.nii", {"label": label}, object()) for i, label in enumerate(self._labels)]
        return [Case(f"scan_{i}", "train", row) for i, row in enumerate(rows)]

    def read(self, case: Case) -> RawSample:
        return super().read(replace(case, source=case.source[1]["label"]))


def test_corrected_labels_make_another_build_and_a_moved_raw_folder_does_not(tmp_path: Path) -> None:
    build(tmp_path / "out", ToyListed("/disk1/raw", (0, 1, np.int64(1))))
    before = contents(tmp_path / "out")
    build(tmp_path / "out", ToyListed("/disk2/moved", (0, 1, 1)))
    assert contents(tmp_path / "out") == before
    with pytest.raises(InputError, match="shards of another build"):
        build(tmp_path / "out", ToyListed("/disk1/raw", (0, 1, np.int64(2))))


@pytest.mark.slow
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, importable: type[ToyVolumes]) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        from inflate3d.data import build_shards
        from toy_volumes_for_workers import ToyVolumes
        if __name__ == "__main__":
            workers = int(sys.argv[2])
            build_shards(ToyVolumes(delay_s=0.03), sys.argv[1], max_samples_per_shard=4, num_workers=workers)
        """)
    )
    build(tmp_path / "whole", importable())
    environment = {**os.environ, "PYTHONPATH": str(Path(sys.modules[importable.__module__].__file__ or "").parent)}
    for workers, until in ((0, "train-000001.index.json"), (2, "train-000003.index.json")):
        out = tmp_path / f"out{workers}"
        process = subprocess.Popen(
            [sys.executable, str(script), str(out), str(workers)], env=environment, start_new_session=True
        )
        deadline = time.monotonic() + 60
        while not (out / until).exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert_group_ends(process.pid)
        assert not (out / "manifest.json").exists()
        assert contents(out) != contents(tmp_path / "whole")
        log = tmp_path / f"log{workers}"
        build(out, importable(log=log))
        assert contents(out) == contents(tmp_path / "whole")
        assert len(log.read_text().split()) < 23


def assert_group_ends(group: int) -> None:
    """Workers of a killed build leave by themselves."""
    for _ in range(500):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    raise AssertionError("workers are still there 10 s after their build was killed")


# -------------------------------------------------------------------------------------------------- the user's faults


def test_rejects_are_listed_with_their_reasons(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        build(tmp_path, ToyVolumes(broken=(3, 8, 9, 10, 22)), max_rejects=4)
    message = str(caught.value)
    assert "5 cases rejected, allowed: 4" in message
    assert "case_003: case_003 is broken" in message
    assert len(message.splitlines()) <= 8
    assert not (tmp_path / "manifest.json").exists()
    manifest = build(tmp_path, ToyVolumes(broken=(3, 8, 9, 10, 22)), max_rejects=5)
    assert {r["key"] for r in manifest.rejects} == {"case_003", "case_008", "case_009", "case_010", "case_022"}
    assert manifest.num_samples() == 18
    assert check_shards(tmp_path) == []


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"holds something else \(thesis\.tex\)"):
        build(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        build(tmp_path / "file")
    build(tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="shards of another build"):
        build(tmp_path / "out", ToyVolumes(count=22))
    assert contents(tmp_path / "out") == before


def test_two_builds_in_one_folder_are_refused(tmp_path: Path) -> None:
    class Nested(ToyVolumes):
        def read(self, case: Case) -> RawSample:
            build(tmp_path)
            return super().read(case)

    with pytest.raises(InputError, match="1 cases rejected") as caught:
        build(tmp_path, Nested(count=1))
    assert "another build is writing there" in str(caught.value)


def test_cases_that_cannot_be_told_apart_or_straddle_splits_are_refused(tmp_path: Path) -> None:
    cases = [Case("a", "train", 0, "patient"), Case("b", "val", 1, "patient")]
    with pytest.raises(InputError, match="group 'patient' is in train and val"):
        build(tmp_path, cases=cases)
    with pytest.raises(InputError, match="doubled: a"):
        build(tmp_path, cases=[cases[0], cases[0]])
    for key in ("a.b", "../a", "", "a b"):
        with pytest.raises(InputError, match="letters and digits"):
            build(tmp_path, cases=[Case(key, "train", 0)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": {"mask": np.zeros((6, 7, 4), np.uint8)}}, "image is (6, 7, 5) and mask (6, 7, 4)"),
        ({"targets": {"mask": np.full((6, 7, 5), 2, np.uint8)}}, "mask holds label 2; 2 classes are named"),
        ({"targets": {"mask": np.zeros((6, 7, 5), np.int64)}}, "mask is int64 (6, 7, 5); expected uint8 (D, H, W)"),
        ({"targets": {}}, "mask is not there; every sample needs one"),
        ({"targets": {"mask": None}}, "mask is not there; every sample needs one"),
        ({"targets": {"msk": np.zeros((6, 7, 5), np.uint8)}}, "unknown target 'msk'; close names: 'mask'"),
        ({"image": np.zeros((6, 7, 5), np.int16)}, "3-D"),
        ({"image": np.zeros((2, 6, 7, 5), np.int16)}, "2 channels"),
        ({"image": np.zeros((1, 6, 7, 5))}, "float64"),
        ({"image": np.full((1, 6, 7, 5), np.nan, np.float32)}, "NaN"),
        ({"spacing_mm": (1, 1, 1)}, "the card states [2.0, 1.0, 1.0]"),
        ({"affine": np.diag([-1.0, 1, 1, 1]).tolist()}, "orientation is LAS; the card states RAS"),
    ],
)
def test_a_sample_that_breaks_its_card_is_rejected(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    class Wrong(ToyVolumes):
        def read(self, case: Case) -> RawSample:
            return replace(super().read(case), **change)

    with pytest.raises(InputError) as caught:
        build(tmp_path, Wrong(count=1))
    assert words in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- damage


def flip_bit(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_in_any_member_is_found_on_reading(tmp_path: Path) -> None:
    entry = build(tmp_path).entries("train")[0]
    whole = (tmp_path / entry.file).read_bytes()
    index = json.loads((tmp_path / entry.index).read_text())
    for i, (key, members) in enumerate(index["samples"]):
        for suffix, offset, size, _ in members:
            for position in (offset, offset + size // 2, offset + size - 1):
                flip_bit(tmp_path / entry.file, position)
                with pytest.raises(BrokenSample, match=rf"{key}\.{suffix}"):
                    ShardReader(tmp_path, Manifest.load(tmp_path)).sample(0, i)
                (tmp_path / entry.file).write_bytes(whole)


def test_missing_and_shortened_files_break_samples_not_the_process(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    entry = manifest.shards[0]
    reader = ShardReader(tmp_path, manifest)
    reader.sample(0, 0)
    os.truncate(tmp_path / entry.file, 2000)  # while it is open
    with pytest.raises(BrokenSample, match="cut short"):
        reader.sample(0, 3)
    reader.close()
    with pytest.raises(BrokenSample, match="2000 bytes; the manifest states"):
        reader.sample(0, 0)
    (tmp_path / entry.file).unlink()
    with pytest.raises(BrokenSample, match="No such file"):
        ShardReader(tmp_path, manifest).sample(0, 0)
    flip_bit(tmp_path / manifest.shards[1].index, 100)
    with pytest.raises(BrokenSample, match="differs from what was written"):
        ShardReader(tmp_path, manifest).sample(1, 0)


def test_check_names_every_kind_of_damage(tmp_path: Path) -> None:
    manifest = build(tmp_path)
    assert check_shards(tmp_path) == []
    flip_bit(tmp_path / "train-000000.tar", 700)
    os.truncate(tmp_path / "train-000001.tar", 5000)
    (tmp_path / "train-000002.tar").unlink()
    (tmp_path / manifest.shards[3].index).write_text("{}")
    (tmp_path / "train-000099.tar").touch()
    faults = "\n".join(check_shards(tmp_path))
    for words in (
        "train-000000.tar: differs",
        "case_000.image.npy differs",
        "train-000001.tar",
        "train-000002.tar",
        "train-000003.index.json: differs",
        "train-000099.tar: is not in the manifest",
    ):
        assert words in faults
    assert "val-" not in faults


def test_a_reader_pickles_and_reads_on_after_a_fork(tmp_path: Path) -> None:
    reader = ShardReader(tmp_path, build(tmp_path), "val")
    first = reader.sample(0, 1)
    again = pickle.loads(pickle.dumps(reader)).sample(0, 1)
    assert (again.key, again.members) == (first.key, first.members)
    child = os.fork()
    if child == 0:
        os._exit(0 if reader.sample(0, 2).key == "case_014" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.sample(0, 2).key == "case_014"


def test_a_pickle_in_a_shard_is_never_executed(tmp_path: Path) -> None:
    from inflate3d.data.shards.members import decode_members

    path = tmp_path / "a.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="plain numbers"):
        decode_members({"image.npy": path.read_bytes()})
    with pytest.raises(ValueError, match="unknown member"):
        decode_members({"pkl": b"anything"})


# ------------------------------------------------------------------------------------------------------------ command


@pytest.mark.slow
def test_the_command_builds_checks_and_describes(tmp_path: Path, platform_command: Any) -> None:
    arguments = ("--num_train", "6", "--num_val", "2", "--output", "out")
    built = platform_command("shards", "build", "toy", *arguments)
    assert built.returncode == 0, built.stderr
    assert "train" in built.stdout
    described = platform_command("shards", "info", "out")
    assert described.returncode == 0, described.stderr
    assert "licence" in described.stdout
    assert platform_command("shards", "check", "out").returncode == 0
    flip_bit(tmp_path / "out" / "train-000000.tar", 600)
    checked = platform_command("shards", "check", "out")
    assert checked.returncode == 2
    assert "train-000000.tar: differs" in checked.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "toi", "--output", "out"), "close names: 'toy'"),
        (("build", "toy", "--output", "out", "--num_trian", "5"), "'num_train'"),
        (("build", "toy", "--output", "out", "--num_train", "many"), "num_train"),
        (("build", "toy"), "--output"),
        (("check", "absent"), "platform shards build"),
    ],
)
def test_a_wrong_command_gets_a_short_message_and_2(
    platform_command: Any, arguments: tuple[str, ...], words: str
) -> None:
    done = platform_command("shards", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 8
    assert "Traceback" not in done.stderr
