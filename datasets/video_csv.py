"""Your videos, or Kinetics, from lists: PySlowFast and MMAction2 style (path label), Kinetics CSV, or path,label."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES, require_file, require_folder, stem
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.text import read_lines
from inflate3d.data.raw.video_lists import Listed, read_video_list
from inflate3d.data.raw.videos import read_video_case
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

_MOST_CLASSES = 1_000_000
_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.csv", "train.txt", "train_list.txt"),
    "val": ("val.csv", "validate.csv", "val.txt", "val_list.txt"),
    "test": ("test.csv", "test.txt", "test_list.txt"),
}


class VideoCSV(AbstractDataset):
    """Lists train.csv, val.csv (or validate.csv) and test.csv under root, in one of three forms, recognised by the
    first line:

    - "path label" without a header, a blank, comma, semicolon or tab between; label a whole number (PySlowFast,
      MMAction2);
    - a header with label, youtube_id, time_start, time_end (Kinetics): the file ID_000010_000020.* anywhere under
      `videos`;
    - a header with path and label, and perhaps group.

    encoding: of the lists, where they are neither UTF-8 nor marked.
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
        encoding: str | None = None,
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
        self._skip_missing, self._encoding = skip_missing, encoding
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
        keys = case_keys(self._names(clips), where="video_csv")
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
    def _clips(self) -> list[Listed]:
        lists = ((split, self._lists[split]) for split in _LISTS if split in self._lists)
        clips = [clip for split, file in lists for clip in read_video_list(file, split, encoding=self._encoding)]
        clips = [clip._replace(path=self._found(clip)) if clip.is_kinetics else clip for clip in clips]
        first: dict[str, Listed] = {}
        for clip in clips:
            if (other := first.setdefault(self._relative(clip), clip)) is not clip:
                raise InputError(
                    f"{clip.at}: the clip {clip.path!r} stands in {other.at} already; leave one of them out"
                )
        return clips

    @cached_property
    def _present(self) -> list[Listed]:
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
            return tuple(name for _, name in read_lines(self._class_file, encoding=self._encoding))
        if all(map(_is_number, labels)):
            largest = max(self._clips, key=lambda clip: int(clip.label))
            if int(largest.label) > _MOST_CLASSES:
                told = f"label {largest.label} is taken for the index of a class, of which it makes too many"
                raise InputError(f"{largest.at}: {told}; number classes from 0, or give them names below a header")
            return tuple(str(i) for i in range(max(map(int, labels)) + 1))
        return tuple(sorted(labels))

    @cached_property
    def _index(self) -> dict[str, int]:
        """Label as written in a list -> class index; an integer that is not a class name counts as an index."""
        index = {name: i for i, name in enumerate(self._classes)}
        for clip in self._clips:
            if clip.label in index:
                continue
            if not _is_number(clip.label) or int(clip.label) >= len(self._classes):
                told = f"label {clip.label!r} is not one of the {len(self._classes)} classes"
                raise InputError(f"{clip.at}: {told}; fix the label or the class_file")
            index[clip.label] = int(clip.label)
        return index

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for folder, _, names in sorted(os.walk(self.videos)):
            for name in sorted(n for n in names if n.lower().endswith(VIDEO_SUFFIXES) and not n.startswith(".")):
                files[stem(name, VIDEO_SUFFIXES)].append(os.path.relpath(f"{folder}/{name}", self.videos))
        return files

    def _found(self, clip: Listed) -> str:
        """Return the one file of a Kinetics clip, or the name that it should have."""
        found = self._by_stem.get(clip.path, [f"{clip.path}.mp4"])
        if len(found) > 1:
            raise InputError(
                f"{clip.at}: {len(found)} files are the clip {clip.path}: {', '.join(found[:4])}; keep one"
            )
        return found[0]

    def _relative(self, clip: Listed) -> str:
        return os.path.relpath(self.videos / clip.path, self.videos)

    def _names(self, clips: list[Listed]) -> list[str]:
        """Return a name per clip, its folders and stem; with the suffix where two files differ in that alone."""
        paths = [Path(self._relative(clip)) for clip in clips]
        names = ["-".join([*(p for p in path.parts[:-1] if p != ".."), stem(path, VIDEO_SUFFIXES)]) for path in paths]
        count = Counter(names)
        return [str(path) if count[name] > 1 else name for path, name in zip(paths, names, strict=True)]

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


def _is_number(label: str) -> bool:
    return label.isascii() and label.isdigit()
