"""Descriptors are one budget for all datasets of a process, and a fault that may pass is never taken for damage."""

from __future__ import annotations

import errno
import gc
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.data.shards import open_files
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.open_files import OpenFiles
from inflate3d.data.shards.reader import BrokenSample, ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.remote.outcomes import Unreachable
from loopback_servers import Clock


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "toy"
    toy = Toy(kind="volume_classification", num_train=6, num_val=1, size=48)  # 110 KB each: mapped
    build_shards(toy, folder, max_samples_per_shard=2, progress=False)
    return folder


def reader_of(folder: Path) -> ShardReader:
    return ShardReader(folder, Manifest.load(folder), "train")


def image(reader: ShardReader, shard: int, i: int = 0, *, borrow: bool = True) -> np.ndarray:
    return np.array(reader.sample(shard, i, borrow=borrow).decode()["image"])


# ----------------------------------------------------------------------------------------------------------- the budget


def test_the_longest_unused_are_closed_first_and_a_map_counts_twice(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    files = OpenFiles(most=4)
    before = len(os.listdir("/dev/fd"))

    def open_(number: int) -> None:
        files.open((0, number), lambda: os.open(tmp_path / "file", os.O_RDONLY))

    for number in range(4):
        open_(number)
    assert files.get((0, 0)) is not None  # used last
    open_(4)
    assert [key[1] for key in files._files] == [2, 3, 0, 4]
    assert bytes(files.map((0, 4))) == b"x" * 100
    assert [key[1] for key in files._files] == [3, 0, 4]
    assert len(os.listdir("/dev/fd")) == before + 4
    files.close_all(0)
    assert len(os.listdir("/dev/fd")) == before


def test_a_full_table_closes_what_is_open_and_only_then_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    files, full = OpenFiles(most=9), [True]

    def open_() -> int:
        if full:
            raise OSError(errno.EMFILE, "Too many open files")
        return os.open(tmp_path / "file", os.O_RDONLY)

    full.clear()
    for number in range(3):
        files.open((0, number), open_)
    full.append(True)
    with pytest.raises(OSError, match="Too many open files"):
        files.open((1, 0), open_)
    assert not files._files


# A process with a low limit reads 20 datasets of 64 shards, mapped ones and small ones, in turns and at random.
MANY = """
import os, random, resource, sys
import numpy as np
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
readers = [ShardReader(folder, Manifest.load(folder), "train") for _ in range(10) for folder in sys.argv[1:3]]
chance, most = random.Random(0), 0
for shard in [*range(64), *(chance.randrange(64) for _ in range(64))]:
    for reader in readers:
        raw = reader.sample(shard, 0, borrow=True)
        assert raw.key == reader.keys(shard)[0]
        raw.decode()  # every hash is checked
        most = max(most, len(os.listdir("/dev/fd")))
print(most)
"""


@pytest.mark.slow
def test_twenty_datasets_of_64_shards_are_read_with_256_descriptors(tmp_path: Path) -> None:
    for name, size in (("small", 16), ("mapped", 48)):
        toy = Toy(kind="volume_classification", num_train=64, num_val=1, size=size)
        build_shards(toy, tmp_path / name, max_samples_per_shard=1, progress=False)
    command = [sys.executable, "-P", "-c", MANY, str(tmp_path / "small"), str(tmp_path / "mapped")]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    assert 60 < int(done.stdout) < 160  # half of what was free, and what the process has anyway


def test_the_soft_limit_is_raised_within_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [1024, 1_000_000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    assert 1500 < open_files._budget() <= 2048
    assert limits == [4096, 1_000_000]
    limits[:] = [256, 256]
    assert 4 <= open_files._budget() < 128
    assert limits == [256, 256]
    limits[:] = [10, 10]
    assert open_files._budget() == 4


# -------------------------------------------------------------------------- faults that pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inflate3d.remote.patience.time", clock)
    return clock


@pytest.fixture
def full_table() -> Iterator[list[int]]:
    """No descriptor is left for this process, until the list is emptied."""
    gc.collect()  # readers of other tests would close theirs
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    held: list[int] = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    yield held
    for handle in held:
        os.close(handle)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_full_table_is_waited_for_and_never_taken_for_damage(
    shards: Path, full_table: list[int], clock: Clock
) -> None:
    os.close(full_table.pop())
    reader = reader_of(shards)
    full_table.append(os.open("/dev/null", os.O_RDONLY))
    with pytest.raises(Unreachable, match=r"Too many open files; raise the limit \(ulimit -n\)"):
        reader.sample(0, 0)
    assert 59 < sum(clock.pauses) <= 61
    for _ in range(3):
        os.close(full_table.pop())
    assert image(reader, 0).shape == (1, 48, 48, 48)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "preadv"])
def test_a_disks_fault_that_passes_gives_the_same_sample_later(
    shards: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, number: int, call: str
) -> None:
    expected = image(reader_of(shards), 1, 1, borrow=False)
    reader, whole, failed = reader_of(shards), getattr(os, call), []

    def failing(*arguments: Any, **options: Any) -> Any:
        if len(failed) < 4:
            failed.append(call)
            raise OSError(number, os.strerror(number))
        return whole(*arguments, **options)

    reader.keys(1)
    monkeypatch.setattr(os, call, failing)
    assert np.array_equal(image(reader, 1, 1, borrow=False), expected)
    assert len(failed) == 4
    assert len(clock.pauses) <= 4  # a full table may be helped by closing what others have open


def test_what_may_not_be_read_ends_the_run_at_once(shards: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def refused(path: Any, *_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    reader = reader_of(shards)
    reader.keys(0)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(Unreachable, match=r"train-000000\.tar: Permission denied; check who may read it"):
        reader.sample(0, 0)
    assert not clock.pauses


def test_a_missing_shard_is_damage_and_a_missing_disk_is_none(shards: Path, tmp_path: Path, clock: Clock) -> None:
    folder = tmp_path / "disk"
    shutil.copytree(shards, folder)
    reader = reader_of(folder)
    (folder / "train-000000.tar").unlink()
    with pytest.raises(BrokenSample, match="No such file"):
        reader.sample(0, 0)
    folder.rename(tmp_path / "unmounted")
    for part in (lambda: reader.sample(1, 0), lambda: reader.keys(2)):
        with pytest.raises(Unreachable, match="No such file"):
            part()
