"""UCF101: 13,320 clips of 101 human actions, with three official splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard
from inflate3d.data.raw.files import require_file
from inflate3d.data.raw.labelled_videos import RGB, Clip, LabelledVideos
from inflate3d.data.raw.text import read_lines
from inflate3d.errors import InputError

_LISTS = "ucfTrainTestlist"


class UCF101(LabelledVideos):
    """UCF-101/CLASS/v_CLASS_g01_c01.avi and ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt below root.

    split: 1, 2 or 3. testlist becomes the test split; val is taken from trainlist by whole groups (g01: one source
    video). Download: wget https://www.crcv.ucf.edu/data/UCF101/UCF101.rar
    https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip, then unpack both into root.
    """

    base_card = DatasetCard(
        name="ucf101",
        media="video",
        title="UCF101 action recognition",
        modality="rgb",
        url="https://www.crcv.ucf.edu/data/UCF101.php",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Soomro et al., UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, "
        "arXiv:1212.0402, 2012",
        input=RGB,
    )
    holds = "UCF-101 and ucfTrainTestlist"

    def __init__(
        self,
        root: str | Path,
        *,
        split: int = 1,
        skip_missing: bool = False,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        if split not in (1, 2, 3):
            raise InputError(f"ucf101: split is {split!r}; the official ones are 1, 2 and 3")
        super().__init__(root, skip_missing=skip_missing, val_fraction=val_fraction, seed=seed)
        self._split = split
        self._files = {
            name: require_file(self.root / _LISTS / name, where="ucf101", holds="an official list")
            for name in ("classInd.txt", f"trainlist{split:02d}.txt", f"testlist{split:02d}.txt")
        }

    def names(self) -> Sequence[str]:
        """The classes of classInd.txt, which counts from 1."""
        return list(self._classes)

    def clips(self) -> list[Clip]:
        """The training list, then the test list."""
        train, test = (self._files[f"{part}list{self._split:02d}.txt"] for part in ("train", "test"))
        return [*self._listed(train, None), *self._listed(test, "test")]

    @cached_property
    def _classes(self) -> dict[str, int]:
        file = self._files["classInd.txt"]
        classes: dict[str, int] = {}
        for line, text in read_lines(file):
            number, _, name = text.partition(" ")
            if number != str(len(classes) + 1) or not name.strip() or name.strip() in classes:
                raise InputError(f"{file} line {line}: {text[:80]!r}; expected '{len(classes) + 1} NameOfClass'")
            classes[name.strip()] = len(classes)
        return classes

    def _listed(self, file: Path, split: Any) -> list[Clip]:
        clips = []
        for line, text in read_lines(file):
            match = re.fullmatch(r"(([^/\s]+)/(v_[^/\s]+_g[0-9]+)_c[0-9]+\.avi)(?:\s+([0-9]+))?", text)
            if match is None:
                raise InputError(f"{file} line {line}: {text[:80]!r}; expected CLASS/v_CLASS_g01_c01.avi")
            path, name, group, number = match.groups()
            if name not in self._classes or (number and int(number) != self._classes[name] + 1):
                raise InputError(f"{file} line {line}: {text[:80]!r} disagrees with classInd.txt on the class {name!r}")
            clips.append(Clip(f"UCF-101/{path}", self._classes[name], split, group, f"{file} line {line}"))
        return clips

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes of six clips each, of three groups, the last of which is the test list."""
        from inflate3d.data.raw.examples import clip

        lists: dict[str, list[str]] = {"trainlist01": [], "testlist01": []}
        (root / _LISTS).mkdir(parents=True, exist_ok=True)
        for index, name in enumerate(("ApplyEyeMakeup", "Archery")):
            (root / "UCF-101" / name).mkdir(parents=True, exist_ok=True)
            for i in range(6):
                file = f"{name}/v_{name}_g{1 + i // 2:02d}_c{1 + i % 2:02d}.avi"
                (root / "UCF-101" / file).write_bytes(clip(brightens=index == 0))
                lists["trainlist01" if i < 4 else "testlist01"].append(f"{file} {index + 1}" if i < 4 else file)
        lists["classInd"] = ["1 ApplyEyeMakeup", "2 Archery"]
        for name, lines in lists.items():
            (root / _LISTS / f"{name}.txt").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
        return {"root": str(root), "val_fraction": 0.5}
