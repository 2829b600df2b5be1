"""Your own videos, one folder per class; split by file, or by a pattern for the scene so that scenes don't leak."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import SPLITS, AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES, class_folders, require_folder, stem
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.videos import read_video_case
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget


class VideoFolder(AbstractDataset):
    """root/CLASS/*.mp4, or root/{train,val,test}/CLASS/*.mp4 where the splits already exist.

    group_pattern: a regular expression searched in a file's name without suffix; its first group is the scene (or the
    source video), and a scene is never in two splits: r"_(\\d+)_\\d+$" finds 11 in Jump_11_3. Scenes are
    chosen so that every class is in both splits if possible, so val may take more than val_fraction.
    file_pattern: only files whose name without suffix matches this: r"_1[01]_\\d+$" takes scenes 10 and 11.
    You state the licence and similar facts; until then the card says unknown and weights stay private.
    """

    base_card = DatasetCard(
        name="video_folder",
        media="video",
        title="Videos in one folder per class",
        modality="rgb",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        # Mean and standard deviation of ImageNet, used to train most 2D weights.
        input=InputSpec(
            ("red", "green", "blue"),
            intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        group_pattern: str | None = None,
        file_pattern: str | None = None,
        val_fraction: float = 0.2,
        val_count: int | None = None,
        split_file: str | None = None,
        seed: int = 0,
        name: str | None = None,
        url: str = "",
        licence: str = "unknown",
        citation: str = "",
        commercial_use: bool | None = None,
        weights_may_be_published: bool = False,
    ) -> None:
        self.root = require_folder(root, where="video_folder", holds="one folder of videos per class")
        self._group_pattern = _compiled("group_pattern", group_pattern)
        self._file_pattern = _compiled("file_pattern", file_pattern)
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._said: dict[str, Any] = {
            "name": name or self.root.name,
            "url": url,
            "licence": licence,
            "citation": citation,
            "commercial_use": commercial_use,
            "weights_may_be_published": weights_may_be_published,
        }
        parts = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self._is_split = bool(parts) and set(parts) <= set(SPLITS) and "train" in parts
        self._files = self._list(parts)

    @property
    def card(self) -> DatasetCard:
        """The card; classes are the folders' names, sorted."""
        return replace(
            self.base_card,
            title=f"Videos of {self.root.name}",
            targets={"label": ClassTarget(self._classes)},
            **self._said,
        )

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return tuple(sorted({file.parent.name for file in self._files}))

    def cases(self) -> list[Case]:
        """Every video, sorted by class and name. A key is the file's stem, or CLASS-stem if stems repeat."""
        stems = [stem(f, VIDEO_SUFFIXES) for f in self._files]
        is_unique = max(Counter(stems).values()) == 1
        names = [s if is_unique else f"{f.parent.name}-{s}" for f, s in zip(self._files, stems, strict=True)]
        if self._is_split and not is_unique:
            names = [f"{f.parent.parent.name}-{n}" for f, n in zip(self._files, names, strict=True)]
        keys = case_keys(names, where="video_folder")
        groups = [self._group(s) for s in stems]
        labels = [self._classes.index(f.parent.name) for f in self._files]
        splits = self._splits(keys, groups, labels)
        rows = zip(keys, self._files, labels, groups, strict=True)
        return [Case(k, splits[k], (str(f.relative_to(self.root)), label), g) for k, f, label, g in rows]

    def read(self, case: Case) -> RawSample:
        """Read the unchanged file; InputError if it is not a video."""
        path, label = case.source
        return read_video_case(self.root / path, where=case.key, targets={"label": label})

    def _list(self, parts: list[str]) -> list[Path]:
        folders = [
            f for p in parts for f in ([self.root / p] if not self._is_split else sorted((self.root / p).iterdir()))
        ]
        found = [p for f in folders if f.is_dir() for p in f.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES]
        files, pattern = sorted(p for p in found if not p.name.startswith(".")), self._file_pattern
        if pattern is not None:
            files = [f for f in files if pattern.search(stem(f, VIDEO_SUFFIXES))]
        if len({f.parent.name for f in files}) < 2:
            matched = "" if pattern is None else f" that match file_pattern {pattern.pattern!r}"
            raise InputError(
                f"video_folder: {self.root} holds {len(files)} videos{matched} in folders {parts[:6]}; expected a "
                f"folder for each of at least two classes, with files {', '.join(VIDEO_SUFFIXES[:4])}, ..."
            )
        return files

    def _group(self, name: str) -> str | None:
        if self._group_pattern is None:
            return None
        if not (match := self._group_pattern.search(name)) or not match.groups():
            raise InputError(
                f"video_folder: group_pattern {self._group_pattern.pattern!r} finds no (group) in {name!r}"
            )
        return match[1]

    def _splits(self, keys: list[str], groups: list[str | None], labels: list[int]) -> dict[str, Split]:
        if self._is_split:
            stated: list[Any] = [f.parent.parent.name for f in self._files]
            return dict(zip(keys, stated, strict=True))
        return self._rule.assign(keys, groups=[g or k for g, k in zip(groups, keys, strict=True)], labels=labels)

    @classmethod
    def recognise(cls, root: Path) -> dict[str, Any] | None:
        """Videos in folders, of which there is one a class, perhaps below train, val and test."""
        return {"root": str(root)} if class_folders(root, VIDEO_SUFFIXES) else None

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes of four 8-frame clips, in four scenes of two."""
        import numpy as np
        from inflate3d.data.raw.videos import encode_video

        for label, name in enumerate(("brighten", "darken")):
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(4):
                levels = np.linspace(20, 220, 8, dtype=np.uint8)[:: 1 - 2 * label]
                frames = np.broadcast_to(levels[:, None, None, None], (8, 32, 48, 3))
                (root / name / f"{name}_{i // 2}_{i}.mp4").write_bytes(encode_video(frames, fps=8))
        return {"root": str(root), "group_pattern": r"_(\d+)_\d+$", "val_fraction": 0.5}


def _compiled(option: str, pattern: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise InputError(f"video_folder: {option} {pattern!r} is not a regular expression: {error}") from error
