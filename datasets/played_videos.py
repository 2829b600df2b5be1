"""Your own videos, each played forwards, backwards, fast and shuffled: is a net able to tell how? No label by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample
from inflate3d.data.raw.class_videos import OWN_VIDEOS, ClassVideos
from inflate3d.data.raw.split_rule import SplitRule
from inflate3d.data.raw.videos import encode_video, read_video_case
from inflate3d.errors import InputError
from inflate3d.seeds import permutation
from inflate3d.targets import ClassTarget

PLAYS = ("forwards", "backwards", "fast", "shuffled")
_FPS = 8  # of the stored clips; it tells nothing of the play


class PlayedVideos(AbstractDataset):
    """The videos of a `video_folder`, each as four clips of `num_frames`: the target `play` says how it is played.

    forwards: every `frame_interval`-th frame, about the middle; backwards: the same from the last to the first; fast:
    twice as far apart; shuffled: the frames of forwards in another order, the same for each build. All clips of a video
    are in one split. Each frame is coded by itself, so that the file does not tell the order. A target that needs
    motion and no labels, to measure weights by; to pretrain, the task ArrowOfTime draws its plays anew each time.

    After Pickup et al. (CVPR 2014) and SpeedNet (arXiv:2004.06130).
    """

    base_card = DatasetCard(
        name="played_videos",
        media="video",
        title="Videos, played in four ways",
        modality="rgb",
        url="",
        licence="unknown",
        commercial_use=None,
        weights_may_be_published=False,
        citation="",
        input=OWN_VIDEOS,
        targets={"play": ClassTarget(PLAYS)},
    )

    def __init__(
        self,
        root: str | Path,
        *,
        num_frames: int = 16,
        frame_interval: int = 1,
        group_pattern: str | None = None,
        file_pattern: str | None = None,
        val_fraction: float = 0.2,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """num_frames: of each clip. frame_interval: from one to the next. What is too short to be fast is refused.

        group_pattern, file_pattern, val_fraction, seed, name: as in `video_folder`, whose layout it reads.
        """
        if num_frames < 4 or frame_interval < 1:
            raise InputError(
                f"played_videos: num_frames is {num_frames}, frame_interval {frame_interval}; give at least 4, and 1"
            )
        self._videos = ClassVideos(
            root,
            group_pattern=group_pattern,
            file_pattern=file_pattern,
            rule=SplitRule(val_fraction, None, None, seed),
            where="played_videos",
        )
        self._name = name or self._videos.root.name
        self.num_frames, self.frame_interval = num_frames, frame_interval

    @property
    def card(self) -> DatasetCard:
        """The card of the videos, with the plays as its target."""
        title = f"Videos of {self._videos.root.name}, played in four ways"
        return replace(self.base_card, name=self._name, title=title)

    def cases(self) -> list[Case]:
        """Four cases a video: KEY-forwards, KEY-backwards, ..."""
        return [
            replace(case, key=f"{case.key}-{play}", source=(case.source[0], play), group=case.group or case.key)
            for case in self._videos.cases()
            for play in PLAYS
        ]

    def read(self, case: Case) -> RawSample:
        """Return the clip as it is played."""
        from inflate3d.data.samples.frames import decode_frames
        from inflate3d.data.samples.video_info import probe_video

        path, play = case.source
        stored = read_video_case(self._videos.root / path, where=case.key)
        content = stored.video or b""
        try:
            info = probe_video(content)
            frames = decode_frames(content, self._order(info.num_frames, play, path), info=info)
        except InputError as error:
            raise InputError(f"{case.key}: {path}: {error}") from error
        even = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
        video = encode_video(even, fps=_FPS, is_intra=True)
        return RawSample(video=video, targets={"play": PLAYS.index(play)}, noticed=stored.noticed)

    def _order(self, length: int, play: str, path: str) -> list[int]:
        """Return the numbers of the frames in the order of the play."""
        needed = (self.num_frames - 1) * 2 * self.frame_interval + 1
        if length < needed:
            raise InputError(
                f"it has {length} frames; {self.num_frames} played fast need {needed}: lower num_frames or "
                "frame_interval, or leave the video out by file_pattern"
            )
        step = self.frame_interval * (2 if play == "fast" else 1)
        first = (length - (self.num_frames - 1) * step - 1) // 2
        order = first + step * np.arange(self.num_frames)
        if play == "backwards":
            order = order[::-1]
        if play == "shuffled":
            order = order[_unlike_time(self.num_frames, path)]
        return [int(i) for i in order]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        """Write two classes of two 8-frame clips that brighten."""
        levels = np.linspace(20, 220, 8, dtype=np.uint8)
        clip = encode_video(np.broadcast_to(levels[:, None, None, None], (8, 32, 48, 3)), fps=8)
        for name in ("one", "two"):
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(2):
                (root / name / f"{name}_{i}.mp4").write_bytes(clip)
        return {"root": str(root), "num_frames": 4, "val_fraction": 0.5}


def _unlike_time(count: int, path: str) -> np.ndarray:
    """Return a permutation that is neither the order of time nor its reverse."""
    for attempt in range(100):
        order = permutation(count, "shuffled", path, attempt)
        if len(set(np.diff(order).tolist())) > 1:
            return order
    raise AssertionError("of four frames or more, few orders run straight")
