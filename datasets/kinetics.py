"""Kinetics-400, 600 or 700: up to 650,000 ten-second clips of human actions from YouTube."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, Split
from inflate3d.data.raw.labelled_videos import RGB, Clip, LabelledVideos
from inflate3d.data.raw.video_lists import Listed, read_video_list
from inflate3d.errors import InputError

_LISTS: dict[Split, tuple[str, ...]] = {
    "train": ("train.csv",),
    "val": ("val.csv", "validate.csv"),
    "test": ("test.csv",),
}
_CITATIONS: Mapping[int, str] = {
    400: "Kay et al., The Kinetics Human Action Video Dataset, arXiv:1705.06950, 2017",
    600: "Carreira et al., A Short Note about Kinetics-600, arXiv:1808.01340, 2018",
    700: "Smaira et al., A Short Note on the Kinetics-700-2020 Human Action Dataset, arXiv:2010.10864, 2020; "
    "Carreira et al., arXiv:1907.06987, 2019",
}


class Kinetics(LabelledVideos):
    """The official lists and the videos ID_000010_000020.mp4 anywhere below root, by split, by class or in one folder.

    version: 400, 600 or 700 (700_2020 too). Lists: train.csv, val.csv (or validate.csv) and test.csv with the columns
    label, youtube_id, time_start, time_end, split, in root or root/annotations; val and test may be absent. Every copy
    lacks some clips: skip_missing. Download (CVDF's copy, 400 as example, hundreds of GB):
    wget https://s3.amazonaws.com/kinetics/400/train/k400_train_path.txt
    https://s3.amazonaws.com/kinetics/400/val/k400_val_path.txt; then wget -i of both, unpack the parts, and
    wget https://s3.amazonaws.com/kinetics/400/annotations/{train,val}.csv; see
    https://github.com/cvdfoundation/kinetics-dataset
    """

    base_card = DatasetCard(
        name="kinetics",
        media="video",
        title="Kinetics human actions",
        modality="rgb",
        url="https://github.com/cvdfoundation/kinetics-dataset",
        licence="CC-BY-4.0 for the lists; the videos are YouTube's users'",
        commercial_use=None,
        weights_may_be_published=False,
        citation=_CITATIONS[400],
        input=RGB,
    )
    holds = "train.csv, val.csv and the videos"

    def __init__(
        self,
        root: str | Path,
        *,
        version: int = 400,
        skip_missing: bool = False,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        if version not in _CITATIONS:
            raise InputError(f"kinetics: version is {version!r}; allowed: {', '.join(map(str, _CITATIONS))}")
        super().__init__(root, skip_missing=skip_missing, val_fraction=val_fraction, seed=seed)
        self._version = version

    @property
    def card(self) -> DatasetCard:
        """The card of the version, with the classes of its lists, sorted."""
        title = f"Kinetics-{self._version} human actions"
        citation = _CITATIONS[self._version]
        return replace(super().card, name=f"kinetics{self._version}", title=title, citation=citation)

    def names(self) -> Sequence[str]:
        """The labels of the lists, sorted. InputError if they are more than the version has."""
        names = sorted({clip.label for clip in self._listed})
        if len(names) > self._version:
            raise InputError(
                f"kinetics: the lists hold {len(names)} classes, Kinetics-{self._version} has {self._version}; "
                "give the version that they are of"
            )
        return names

    def clips(self) -> list[Clip]:
        """The clips of train, val and test, in the lists' order; without a val list it is taken from train."""
        index = {name: i for i, name in enumerate(self.names())}
        has_val = any(clip.split == "val" for clip in self._listed)
        return [
            Clip(
                self.file_of(clip.path, clip.at),
                index[clip.label],
                clip.split if has_val or clip.split != "train" else None,
                clip.group,
                clip.at,
            )
            for clip in self._listed
        ]

    @cached_property
    def _listed(self) -> list[Listed]:
        listed = []
        for split, names in _LISTS.items():
            places = [self.root / folder / name for folder in (".", "annotations") for name in names]
            files = [place for place in places if place.is_file()]
            if len(files) > 1:
                raise InputError(f"kinetics: both {files[0]} and {files[1]} list the {split} clips; keep one")
            if files:
                listed += read_video_list(files[0], split)
            elif split == "train":
                raise InputError(f"kinetics: {self.root} has no train.csv or annotations/train.csv, the official list")
        if other := next((clip for clip in listed if not clip.is_kinetics), None):
            raise InputError(f"{other.at}: expected a header with label, youtube_id, time_start and time_end")
        return listed

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write six clips in train/CLASS and val/CLASS, as many copies have them, and the lists in annotations."""
        from inflate3d.data.raw.examples import clip

        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for split, count in (("train", 4), ("val", 2)):
            lines = ["label,youtube_id,time_start,time_end,split"]
            for i in range(count):
                label = ("abseiling", "air drumming")[i % 2]
                video = f"-a{split}{i}_{label[0]}_X"
                (root / split / label).mkdir(parents=True, exist_ok=True)
                (root / split / label / f"{video}_000010_000020.mp4").write_bytes(clip(brightens=i % 2 == 0))
                lines.append(f"{label},{video},10,20,{split}")
            (root / "annotations" / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {"root": str(root), "version": 400}
