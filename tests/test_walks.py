"""Every walk of docs/walks works as written: its files are made, its commands and code run, on made-up data."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from dicom_files import write_slice
from inflate3d.data.raw.readers import write_nifti
from video_clips import clip
from warm_process import PLATFORM, WarmProcess

WALKS = ROOT / "docs" / "walks"
SHORT = ["--trainer.max_steps=2", "--trainer.val_check_interval=2", "--data.num_workers=0"]
SHORT += ["--model.warmup_steps=1", "--data.datasets.mine.batch_size=2"]
# What is added to a `platform fit` of these configs, so that it takes seconds.
SMALLER = {
    "finetune_segmentation.yaml": [*SHORT, "--data.datasets.mine.sample.patch_size=[16,16,16]"],
    "finetune_video.yaml": [*SHORT, "--data.datasets.mine.sample={num_frames: 4, crop_size: 32}"],
}


def make_nifti_folder(folder: Path) -> None:
    chance = np.random.default_rng(0)
    for split, numbers in (("Tr", range(5)), ("Ts", range(5, 6))):
        for number in numbers:
            mask = np.zeros((16, 16, 16), np.uint8)
            mask[2:7, 4:12, 3:13], mask[9:14, 4:12, 3:13] = 1, 2
            image = (chance.normal(0, 9, mask.shape) + 50 * mask).astype(np.int16)
            for kind, name, array in (("images", "case_{}_0000", image), ("labels", "case_{}", mask)):
                path = folder / "mine" / f"{kind}{split}" / f"{name.format(number)}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_nifti(path, array)
    names = '"background": 0, "left": 1, "right": 2'
    told = f'{{"channel_names": {{"0": "t1"}}, "labels": {{{names}}}, "numTraining": 5, "file_ending": ".nii.gz"}}'
    (folder / "mine" / "dataset.json").write_text(told)


def make_studies(folder: Path) -> None:
    chance = np.random.default_rng(0)
    for patient in range(1, 5):
        for number in range(16):
            array = chance.integers(0, 900, (16, 16)).astype(np.int16)
            own = {"SeriesInstanceUID": f"1.2.3.{patient}", "SOPInstanceUID": f"1.2.4.{patient}.{number}"}
            place = folder / "studies" / f"p{patient}" / "head"
            write_slice(place, number, array, (0, 0, number), SliceThickness=1, **own)


def make_clips(folder: Path) -> None:
    for kind, values in (("jump", (20, 30)), ("run", (21, 31))):
        (folder / "clips" / kind).mkdir(parents=True)
        for frames in values:
            (folder / "clips" / kind / f"{frames}.mp4").write_bytes(clip(container="mp4", frames=frames))


def make_scans(folder: Path) -> None:
    for number, name in enumerate(["healthy", "ill"] * 4):
        (folder / "scans" / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / "scans" / name / f"{number}.npy", np.random.default_rng(number).normal(size=(16, 16, 16)))


MADE: dict[str, Callable[[Path], None]] = {
    "nifti_folder": make_nifti_folder,
    "dicom": make_studies,
    "videos": make_clips,
    "own_plug_ins": make_scans,
    "cluster": lambda folder: None,
}


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield (language, name of the file that it is, or "", content) of each fenced block."""
    for language, content in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first, _, rest = content.partition("\n")
        name = re.fullmatch(r"# ([\w./-]+\.\w+)", first)
        yield (language, name[1], rest) if name else (language, "", content)


class Walker:
    """Follows a walk in a folder, as one who pastes its blocks there in turn."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site = folder, folder / "site"
        self.environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(self.site), "COLUMNS": "160"}

    def follow(self, language: str, name: str, content: str) -> None:
        if name:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            if path.suffix == ".py":
                (path.parent / "__init__.py").write_text('"""Plug-ins."""\n')
        elif language == "sh":
            for line in content.replace("\\\n", " ").splitlines():
                self.run(line)
        elif language == "python":
            exec(compile(content, "walk", "exec"), {})

    def run(self, line: str) -> None:
        command, _, into = line.partition(" > ")
        program, *words = shlex.split(command)
        if program == "pip":
            self.install(words)
            return
        assert program == "platform", line
        words += SMALLER.get(words[words.index("--config") + 1], []) if words[0] == "fit" else []
        done = WarmProcess(PLATFORM, *words, cwd=self.folder, env=self.environment).done()
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        if into:
            (self.folder / into).write_text(done.stdout)

    def install(self, words: list[str]) -> None:
        """Install a package where this walk's processes find it, and nothing else does."""
        command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps", "--no-build-isolation"]
        target = ["--disable-pip-version-check", "--target", str(self.site)]
        subprocess.run([*command, *target], cwd=self.folder, check=True)


def test_every_walk_is_followed() -> None:
    assert {path.stem for path in WALKS.glob("*.md")} == set(MADE)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_walk_works_as_it_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MADE[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    walker = Walker(tmp_path)
    for block in blocks((WALKS / f"{name}.md").read_text(encoding="utf-8")):
        walker.follow(*block)
