"""A published set of video clips with one class each: what every such set shares, whatever its lists look like."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, InputSpec, Intensity, RawSample, Split
from inflate3d.data.raw.files import VIDEO_SUFFIXES, require_folder, stem, visible
from inflate3d.data.raw.keys import case_keys, file_names
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.videos import read_video_case
from inflate3d.errors import InputError
from inflate3d.targets import ClassTarget

# Mean and standard deviation of ImageNet, used to train most 2D weights.
RGB = InputSpec(
    ("red", "green", "blue"),
    intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


class Clip(NamedTuple):
    """path: relative to the folder of videos. split None: of the training list, which SplitRule divides by group."""

    path: str
    label: int | None
    split: Split | None
    group: str | None
    at: str


class LabelledVideos(AbstractDataset):
    """Clips that lists name, below a root. A subclass says `holds`, `names` and `clips`."""

    holds: ClassVar[str] = ""
    """What the root folder holds, for messages."""

    def __init__(
        self, root: str | Path, *, skip_missing: bool = False, val_fraction: float = 0.1, seed: int = 0
    ) -> None:
        """skip_missing: leave out listed clips that have no file, and log how many; otherwise the build rejects each.
        val_fraction, seed: where the lists have no validation part, it is taken from the training list by whole groups.
        """
        self.where = self.base_card.name
        self.root = require_folder(root, where=self.where, holds=self.holds)
        self._skip_missing = skip_missing
        self._rule = SplitRule(val_fraction, seed=seed)

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Return the classes in index order."""

    @abstractmethod
    def clips(self) -> list[Clip]:
        """Return the listed clips in a stable order."""

    @property
    def card(self) -> DatasetCard:
        """The card with the classes of the lists."""
        return replace(self.base_card, targets={"label": ClassTarget(tuple(self.names()))})

    def cases(self) -> list[Case]:
        """Every listed clip; with skip_missing those that have a file."""
        clips = self._present if self._skip_missing else self._clips
        keys = case_keys(file_names([c.path for c in clips], VIDEO_SUFFIXES), where=self.where)
        dealt = {key: c for key, c in zip(keys, clips, strict=True) if c.split is None}
        splits = self._rule.assign(
            list(dealt),
            groups=[c.group or key for key, c in dealt.items()],
            labels=[-1 if c.label is None else c.label for c in dealt.values()],
        )
        rows = zip(keys, clips, strict=True)
        return [Case(key, c.split or splits[key], (c.path, c.label), None if c.split else c.group) for key, c in rows]

    def read(self, case: Case) -> RawSample:
        """Read the unchanged file; InputError if it is missing or not a video."""
        path, label = case.source
        return read_video_case(self.root / path, where=case.key, targets={"label": label})

    def file_of(self, name: str, at: str) -> str:
        """Return the path of the one video of that name without its suffix; InputError if there are several.

        Where there is none, the name itself, so that the build names what is missing.
        """
        found = self._by_stem.get(name, [name])
        if len(found) > 1:
            raise InputError(f"{at}: {len(found)} files are the clip {name}: {', '.join(found[:4])}; keep one")
        return found[0]

    @cached_property
    def _by_stem(self) -> Mapping[str, list[str]]:
        files: dict[str, list[str]] = defaultdict(list)
        for path in visible(self.root, "**/*.*"):
            if path.name.lower().endswith(VIDEO_SUFFIXES):
                files[stem(path, VIDEO_SUFFIXES)].append(str(path.relative_to(self.root)))
        return files

    @cached_property
    def _clips(self) -> list[Clip]:
        if not (clips := self.clips()):
            raise InputError(f"{self.where}: {self.root} lists no clip; expected {self.holds}")
        first: dict[str, Clip] = {}
        for clip in clips:
            if (other := first.setdefault(clip.path, clip)) is not clip:
                raise InputError(f"{clip.at}: the clip {clip.path!r} stands in {other.at} already; leave one out")
        return clips

    @cached_property
    def _present(self) -> list[Clip]:
        present = [c for c in self._clips if (self.root / c.path).is_file()]
        if not present:
            raise InputError(f"{self.where}: none of {len(self._clips)} listed clips is under {self.root}")
        if absent := len(self._clips) - len(present):
            told = "%s: %d of %d clips have no file and are left out"
            logging.getLogger(__name__).warning(told, self.where, absent, len(self._clips))
        return present
