"""HMDB51: 6,766 clips of 51 human actions from films and the web, with three official splits."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, Split
from inflate3d.data.raw.files import visible
from inflate3d.data.raw.labelled_videos import RGB, Clip, LabelledVideos
from inflate3d.data.raw.text import read_lines
from inflate3d.errors import InputError

_PARTS: dict[str, Split | None] = {"1": None, "2": "test"}


class HMDB51(LabelledVideos):
    """hmdb51_org/CLASS/*.avi and testTrainMulti_7030_splits/CLASS_test_split1.txt below root.

    split: 1, 2 or 3. A list gives each clip of a class a 1 (training), 2 (test) or 0 (not used in this split). Test
    clips become the test split; val is taken from the training clips by whole sources (the name before the class).
    Download: wget http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/hmdb51_org.rar
    http://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/test_train_splits.rar, then unpack both, and the
    archive of each class into hmdb51_org.
    """

    base_card = DatasetCard(
        name="hmdb51",
        media="video",
        title="HMDB51: a large human motion database",
        modality="rgb",
        url="https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/",
        licence="CC-BY-4.0 as its authors state; films and web videos whose owners hold the copyright",
        commercial_use=None,
        weights_may_be_published=False,
        citation="Kuehne et al., HMDB: A large video database for human motion recognition, ICCV 2011, "
        "doi:10.1109/ICCV.2011.6126543",
        input=RGB,
    )
    holds = "hmdb51_org and testTrainMulti_7030_splits"

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
            raise InputError(f"hmdb51: split is {split!r}; the official ones are 1, 2 and 3")
        super().__init__(root, skip_missing=skip_missing, val_fraction=val_fraction, seed=seed)
        self._split = split

    def names(self) -> Sequence[str]:
        """The classes, sorted: those that have a list."""
        return list(self._lists)

    def clips(self) -> list[Clip]:
        """The clips of each class that this split uses, in the lists' order."""
        return [c for i, (name, file) in enumerate(self._lists.items()) for c in self._of_class(i, name, file)]

    @cached_property
    def _lists(self) -> dict[str, Path]:
        end = f"_test_split{self._split}.txt"
        files = visible(self.root, f"testTrainMulti_7030_splits/*{end}")
        if not files:
            raise InputError(f"hmdb51: {self.root} has no testTrainMulti_7030_splits/*{end}; expected {self.holds}")
        return {file.name.removesuffix(end): file for file in files}

    def _of_class(self, index: int, name: str, file: Path) -> list[Clip]:
        clips = []
        for line, text in read_lines(file):
            if (match := re.fullmatch(r"(.+\.avi)\s+([012])", text)) is None:
                raise InputError(f"{file} line {line}: {text[:80]!r}; expected 'NAME.avi' and 0, 1 or 2")
            if match[2] == "0":
                continue
            path = f"hmdb51_org/{name}/{match[1]}"
            source = match[1].split(f"_{name}_")[0]
            clips.append(Clip(path, index, _PARTS[match[2]], source, f"{file} line {line}"))
        return clips

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes of five clips: three for training, one for testing, one that is not used."""
        from inflate3d.data.raw.examples import clip

        lists = root / "testTrainMulti_7030_splits"
        lists.mkdir(parents=True, exist_ok=True)
        for name in ("brush_hair", "cartwheel"):
            (root / "hmdb51_org" / name).mkdir(parents=True, exist_ok=True)
            lines = []
            for i, part in enumerate("11120"):
                file = f"Film_{name[0]}{i // 2}_{name}_u_nm_np1_ba_goo_{i}.avi"
                (root / "hmdb51_org" / name / file).write_bytes(clip(brightens=name == "cartwheel"))
                lines.append(f"{file} {part} ")
            (lists / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "val_fraction": 0.3}
