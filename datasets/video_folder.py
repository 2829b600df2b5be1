"""Your own videos, one folder per class; split by file, or by a pattern for the scene so that scenes don't leak."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample
from inflate3d.data.raw.class_videos import OWN_VIDEOS, ClassVideos
from inflate3d.data.raw.files import VIDEO_SUFFIXES, class_folders
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.videos import read_video_case
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
        input=OWN_VIDEOS,
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
        self._videos = ClassVideos(
            root,
            group_pattern=group_pattern,
            file_pattern=file_pattern,
            rule=SplitRule(val_fraction, val_count, split_file, seed),
            where="video_folder",
        )
        self.root = self._videos.root
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
        """The card; classes are the folders' names, sorted."""
        return replace(
            self.base_card,
            title=f"Videos of {self.root.name}",
            targets={"label": ClassTarget(self._videos.classes)},
            **self._said,
        )

    def cases(self) -> list[Case]:
        """Every video, sorted by class and name. A key is the file's stem, or CLASS-stem if stems repeat."""
        return self._videos.cases()

    def read(self, case: Case) -> RawSample:
        """Read the unchanged file; InputError if it is not a video."""
        path, label = case.source
        return read_video_case(self.root / path, where=case.key, targets={"label": label})

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
