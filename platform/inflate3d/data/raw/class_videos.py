"""Videos in one folder a class, perhaps below train, val and test: their names, classes, scenes and splits."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import SPLITS, Case, InputSpec, Intensity, Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES, require_folder, stem
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.raw.name_patterns import compiled, first_group
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.errors import InputError

OWN_VIDEOS = InputSpec(
    ("red", "green", "blue"),
    # Mean and standard deviation of ImageNet, used to train most 2D weights.
    intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)
"""What videos of one's own are turned into."""


class ClassVideos:
    """root/CLASS/*.mp4, or root/{train,val,test}/CLASS/*.mp4 where the splits already exist.

    group_pattern: a regular expression searched in a file's name without suffix; its first group is the scene, never
    in two splits. file_pattern: only files whose name without suffix matches this. where: the dataset, in messages.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        group_pattern: str | None,
        file_pattern: str | None,
        rule: SplitRule,
        where: str,
    ) -> None:
        self.root, self.where = require_folder(root, where=where, holds="one folder of videos per class"), where
        self._group_pattern = compiled(group_pattern, option="group_pattern", where=where)
        self._file_pattern = compiled(file_pattern, option="file_pattern", where=where)
        self._rule = rule
        parts = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        self._is_split = bool(parts) and set(parts) <= set(SPLITS) and "train" in parts
        self._files = self._list(parts)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The folders' names, sorted."""
        return tuple(sorted({file.parent.name for file in self._files}))

    def cases(self) -> list[Case]:
        """Every video, sorted by class and name. A key is the file's stem, or CLASS-stem if stems repeat."""
        stems = [stem(f, VIDEO_SUFFIXES) for f in self._files]
        is_unique = max(Counter(stems).values()) == 1
        names = [s if is_unique else f"{f.parent.name}-{s}" for f, s in zip(self._files, stems, strict=True)]
        if self._is_split and not is_unique:
            names = [f"{f.parent.parent.name}-{n}" for f, n in zip(self._files, names, strict=True)]
        keys = case_keys(names, where=self.where)
        groups = [self._group(s) for s in stems]
        labels = [self.classes.index(f.parent.name) for f in self._files]
        splits = self._splits(keys, groups, labels)
        rows = zip(keys, self._files, labels, groups, strict=True)
        return [Case(k, splits[k], (str(f.relative_to(self.root)), label), g) for k, f, label, g in rows]

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
                f"{self.where}: {self.root} holds {len(files)} videos{matched} in folders {parts[:6]}; expected a "
                f"folder for each of at least two classes, with files {', '.join(VIDEO_SUFFIXES[:4])}, ..."
            )
        return files

    def _group(self, name: str) -> str | None:
        pattern = self._group_pattern
        return None if pattern is None else first_group(pattern, name, option="group_pattern", where=self.where)

    def _splits(self, keys: list[str], groups: list[str | None], labels: list[int]) -> dict[str, Split]:
        if self._is_split:
            stated: list[Any] = [f.parent.parent.name for f in self._files]
            return dict(zip(keys, stated, strict=True))
        return self._rule.assign(keys, groups=[g or k for g, k in zip(groups, keys, strict=True)], labels=labels)
