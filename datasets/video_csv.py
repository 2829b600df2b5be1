"""Your videos, or Kinetics, from lists: PySlowFast and MMAction2 style (path label), Kinetics CSV, or path,label."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES, require_file, require_folder, stem
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.tables import read_table
from inflate3d.data.raw.videos import read_video_case
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.csv", "train.txt", "train_list.txt"),
    "val": ("val.csv", "validate.csv", "val.txt", "val_list.txt"),
    "test": ("test.csv", "test.txt", "test_list.txt"),
}


class _Clip(NamedTuple):
    split: Split
    path: str
    label: str
    group: str | None


class VideoCSV(AbstractDataset):
    """Lists train.csv, val.csv (or validate.csv) and test.csv under root, in one of three forms, recognised by the
    first line:

    - "path label" or "path,label" without a header; label an integer (PySlowFast, MMAction2);
    - a header with label, youtube_id, time_start, time_end (Kinetics): the file ID_000010_000020.* anywhere under
      `videos`;
    - a header with path and label, and perhaps group.

    videos: the folder that paths are relative to (default: root). class_file: class names, one per line in index
    order; without it classes are the labels found, sorted. Without a val list, SplitRule divides train.
    skip_missing: leave out clips without a file and log how many (every copy of Kinetics has some); otherwise the build
    rejects each.
    """

    base_card = DatasetCard(
        name="video_csv",
        media="video",
        title="Videos listed in CSV files",
        modality="rgb",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=InputSpec(
            ("red", "green", "blue"),
            intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
    )

    def __init__(
        self,
        root: str | Path,
        *,
        videos: str | None = None,
        class_file: str | None = None,
        skip_missing: bool = False,
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
        self.root = require_folder(root, where="video_csv", holds="train.csv and val.csv")
        self.videos = require_folder(self.root / (videos or "."), where="video_csv", holds="the videos")
        self._rule = SplitRule(val_fraction, val_count, split_file, seed)
        self._class_file = (
            require_file(self.root / class_file, where="video_csv", holds="class names") if class_file else None
        )
        self._skip_missing = skip_missing
        self._lists = {
            s: self.root / n for s, names in _LISTS.items() for n in names[::-1] if (self.root / n).is_file()
        }
        if "train" not in self._lists:
            require_file(self.root / "train.csv", where="video_csv", holds="a list of training clips")
        self._said: dict[str, Any] = {
            "name": name or self.root.name,
            "url": url,
            "licence": licence,
            "citation": citation,
            "commercial_use": commercial_use,
            "weights_may_be_published": weights_may_be_published,
        }

    @property
    def card(self) -> DatasetCard:
        """The card with the classes of the lists."""
        targets = {"label": ClassTarget(self._classes)}
        return replace(self.base_card, title=f"Videos listed in {self.root.name}", targets=targets, **self._said)

    def cases(self) -> list[Case]:
        """Every listed clip, in the lists' order: train, val, test."""
        clips = self._present if self._skip_missing else self._clips
        keys = case_keys([self._key_name(c) for c in clips], where="video_csv")
        labels = [self._index[c.label] for c in clips]
        groups = [c.group or key for c, key in zip(clips, keys, strict=True)]
        splits: dict[str, Split] = {key: c.split for key, c in zip(keys, clips, strict=True)}
        dealt = [i for i, c in enumerate(clips) if c.split == "train"] if "val" not in self._lists else []
        if dealt:
            dealt_groups, dealt_labels = [groups[i] for i in dealt], [labels[i] for i in dealt]
            splits |= self._rule.assign([keys[i] for i in dealt], groups=dealt_groups, labels=dealt_labels)
        # Splits stated by the lists are kept as published.
        stated = [c.group if dealt and c.split == "train" else None for c in clips]
        rows = zip(keys, clips, labels, stated, strict=True)
        return [Case(key, splits[key], (c.path, label), group) for key, c, label, group in rows]

    def read(self, case: Case) -> RawSample:
        """Read the unchanged file; InputError if it is missing or not a video."""
        path, label = case.source
        return read_video_case(self.videos / path, where=case.key, targets={"label": label})

    @cached_property
    def _clips(self) -> list[_Clip]:
        return [clip for split in _LISTS if split in self._lists for clip in self._read_list(split, self._lists[split])]

    @cached_property
    def _present(self) -> list[_Clip]:
        present = [c for c in self._clips if (self.videos / c.path).is_file()]
        if not present:
            raise InputError(
                f"video_csv: none of {len(self._clips)} listed clips is under {self.videos}; give `videos`"
            )
        absent = len(self._clips) - len(present)
        if absent:
            logging.getLogger(__name__).warning(
                "%d of %d clips have no file and are left out", absent, len(self._clips)
            )
        return present

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        labels = {c.label for c in self._clips}
        if self._class_file is not None:
            return tuple(n.strip() for n in self._class_file.read_text(encoding="utf-8").splitlines() if n.strip())
        if all(label.isdigit() for label in labels):
            return tuple(str(i) for i in range(max(map(int, labels)) + 1))
        return tuple(sorted(labels))

    @cached_property
    def _index(self) -> dict[str, int]:
        """Label as written in a list -> class index; an integer that is not a class name counts as an index."""
        index = {name: i for i, name in enumerate(self._classes)}
        for label in {c.label for c in self._clips} - set(index):
            if not label.isdigit() or int(label) >= len(self._classes):
                raise InputError(
                    f"video_csv: label {label!r} is not one of the {len(self._classes)} classes; fix the class_file"
                )
            index[label] = int(label)
        return index

    @cached_property
    def _by_stem(self) -> dict[str, str]:
        walk = ((folder, name) for folder, _, names in os.walk(self.videos) for name in names)
        found = [(folder, name) for folder, name in walk if name.lower().endswith(VIDEO_SUFFIXES)]
        return {
            stem(name, VIDEO_SUFFIXES): os.path.relpath(f"{folder}/{name}", self.videos)
            for folder, name in sorted(found)
        }

    def _read_list(self, split: Split, file: Path) -> list[_Clip]:
        with file.open(encoding="utf-8-sig") as lines:
            header = {c.strip() for c in lines.readline().split(",")}
        if {"youtube_id", "time_start", "time_end"} <= header:
            return [self._kinetics(split, row) for row in read_table(file, required=("label", "youtube_id"))]
        if {"path", "label"} <= header:
            rows = read_table(file, required=("path", "label"), allowed=("path", "label", "group"))
            return [_Clip(split, row["path"], row["label"], row.get("group") or None) for row in rows]
        return [self._plain(split, file, i, line) for i, line in _lines(file)]

    def _kinetics(self, split: Split, row: dict[str, str]) -> _Clip:
        name = f"{row['youtube_id']}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        return _Clip(split, self._by_stem.get(name, f"{name}.mp4"), row["label"], row["youtube_id"])

    def _plain(self, split: Split, file: Path, number: int, line: str) -> _Clip:
        match = re.fullmatch(r"(.+?)[ \t,]+(\d+)", line)
        if match is None:
            raise InputError(
                f"{file} line {number}: {line[:80]!r}; expected 'path label' with an integer label, or a header"
            )
        return _Clip(split, match[1].strip('"'), match[2], None)

    def _key_name(self, clip: _Clip) -> str:
        path = Path(os.path.relpath(self.videos / clip.path, self.videos))
        return "-".join([*(p for p in path.parts[:-1] if p != ".."), stem(path, VIDEO_SUFFIXES)])

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write six 8-frame clips under videos/, Kinetics-style train.csv and validate.csv."""
        import numpy as np
        from inflate3d.data.raw.videos import encode_video

        (root / "videos").mkdir(parents=True, exist_ok=True)
        header = "label,youtube_id,time_start,time_end,split"
        lists = {"train": [header], "validate": [header]}
        for i in range(6):
            label = i % 2
            levels = np.linspace(20, 220, 8, dtype=np.uint8)[:: 1 - 2 * label]
            frames = np.broadcast_to(levels[:, None, None, None], (8, 32, 48, 3))
            (root / "videos" / f"-clip_{i}_000010_000020.mp4").write_bytes(encode_video(frames, fps=8))
            part = "train" if i < 4 else "validate"
            lists[part].append(f"{('lights on', 'lights off')[label]},-clip_{i},10,20,{part}")
        for part, lines in lists.items():
            (root / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "videos": "videos"}


def _lines(file: Path) -> list[tuple[int, str]]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return [(i, line.strip()) for i, line in enumerate(lines, start=1) if line.strip()]
