"""Builds in parts and builds that are killed: the same bytes in the end, nothing lost, nothing doubled."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from inflate3d.data import Manifest, ShardReader, build_shards, check_shards
from inflate3d.data.shards.parts import Part, merge_parts
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError

TOY = {"kind": "volume_segmentation", "num_train": 23, "num_val": 6, "size": 16}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def build(folder: Path, part: str | None = None, **options: Any) -> Manifest:
    options = {"max_samples_per_shard": 4, "progress": False, **options}
    return build_shards(Toy(**TOY), folder, part=None if part is None else Part.parse(part), **options)


def samples(folder: Path) -> list[tuple[str, dict[str, bytes]]]:
    reader = ShardReader(folder, Manifest.load(folder))
    raw = [reader.sample(s, i) for s, e in enumerate(reader.entries) for i in range(e.samples)]
    return [(r.key, {k: bytes(v) for k, v in r.members.items()}) for r in raw]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3, 40])
def test_merged_parts_hold_the_samples_of_one_build(tmp_path: Path, count: int) -> None:
    build(tmp_path / "whole")
    for i in range(count, 0, -1):  # in any order
        build(tmp_path / "parts", f"{i}/{count}")
    manifest = merge_parts(tmp_path / "parts")
    assert samples(tmp_path / "parts") == samples(tmp_path / "whole")
    assert manifest.statistics == Manifest.load(tmp_path / "whole").statistics
    assert check_shards(tmp_path / "parts") == []
    before = contents(tmp_path / "parts")
    merge_parts(tmp_path / "parts")
    assert contents(tmp_path / "parts") == before


def test_a_merge_that_is_cut_off_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for out in ("whole", "parts"):
        for i in (1, 2):
            build(tmp_path / out, f"{i}/2")
    merge_parts(tmp_path / "whole")
    link, calls = os.link, []

    def failing(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        link(*arguments)

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(KeyboardInterrupt):
        merge_parts(tmp_path / "parts")
    monkeypatch.setattr(os, "link", link)
    merge_parts(tmp_path / "parts")
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_merge_refuses_what_is_no_whole(tmp_path: Path) -> None:
    build(tmp_path / "out", "1/3")
    build(tmp_path / "out", "3/3")
    with pytest.raises(InputError, match=r"parts \[2\] of 3 are not finished.*--part 2/3"):
        merge_parts(tmp_path / "out")
    build(tmp_path / "out", "1/2")
    with pytest.raises(InputError, match=r"parts of \[2, 3\]"):
        merge_parts(tmp_path / "out")
    with pytest.raises(InputError, match=r"parts of \[\]"):
        merge_parts(tmp_path / "absent")
    build_shards(Toy(**{**TOY, "seed": 1, "num_train": 5}), tmp_path / "other", part=Part(1, 2), progress=False)
    build(tmp_path / "other", "2/2")
    with pytest.raises(InputError, match="other cases or limits"):
        merge_parts(tmp_path / "other")


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/2", "1/100000"])
def test_a_wrong_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="part is"):
        Part.parse(text)


@pytest.mark.slow
def test_the_command_builds_parts_and_merges_them(tmp_path: Path, platform_command: Any) -> None:
    arguments = ("shards", "build", "toy", "--output", "out", "--num_train", "6", "--num_val", "2")
    for i in (1, 2):
        done = platform_command(*arguments, "--part", f"{i}/2")
        assert done.returncode == 0, done.stderr
        assert "platform shards merge out" in done.stdout
    assert platform_command("shards", "merge", "out").returncode == 0
    assert platform_command("shards", "check", "out").returncode == 0
    again = platform_command(*arguments, "--part", "1/2")
    assert again.returncode == 2
    assert "merged shards already" in again.stderr


SCRIPT = """
import sys
from inflate3d.data import build_shards
from inflate3d.datasets.toy import Toy
if __name__ == "__main__":
    toy = Toy(kind="volume_segmentation", num_train=900, num_val=100, size=32)
    build_shards(toy, sys.argv[1], max_samples_per_shard=7, num_workers=int(sys.argv[2]), progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("most_kills", [6, pytest.param(20, marks=pytest.mark.nightly)])
def test_kills_at_random_moments_leave_the_bytes_of_an_undisturbed_build(tmp_path: Path, most_kills: int) -> None:
    script, moments = tmp_path / "build.py", random.Random(0)
    script.write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}

    def start(folder: str, workers: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path / folder), str(workers)]
        return subprocess.Popen(command, env=environment, start_new_session=True)

    assert start("whole", 2).wait(300) == 0
    kills, at_work, number = 0, 0, 0
    while kills < most_kills:
        folder = tmp_path / f"killed-{number}"
        before = len(list(folder.glob("*.index.json")))
        process = start(folder.name, moments.choice((0, 2)))
        more = moments.random() < 0.7  # else perhaps while it looks at what is there
        while more and process.poll() is None and len(list(folder.glob("*.index.json"))) <= before:
            time.sleep(0.002)
        time.sleep(moments.random() * (0.05 if more else 3))
        if process.poll() is None:
            at_work += len(list(folder.glob("*.index.json"))) > before
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if (folder / "manifest.json").exists():  # it was quicker than the kill
            assert contents(folder) == contents(tmp_path / "whole")
            number += 1
    assert at_work >= most_kills // 4, "the kills must fall while shards are written"
    folder = tmp_path / f"killed-{number}"
    assert start(folder.name, 1).wait(300) == 0
    assert contents(folder) == contents(tmp_path / "whole")
