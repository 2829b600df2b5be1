"""Videos: compressed files, of which the frames of a clip are decoded as (3, T, H, W)."""

# C channel, T frames, H W pixels.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from inflate3d.contracts import AbstractMedium, DatasetCard, InputSpec, Intensity, Plane, RawSample, Stage
from inflate3d.data.raw.files import VIDEO_SUFFIXES, stem
from inflate3d.data.samples.options import VideoSample
from inflate3d.data.samples.video_info import VideoInfo
from inflate3d.errors import InputError
from inflate3d.sample import Spacing


class Video(AbstractMedium):
    """Clips in colour; what is known of a video is known of the whole."""

    options = VideoSample
    suffixes = VIDEO_SUFFIXES
    mirror_axes = "W"
    byte_members: ClassVar[Mapping[str, str]] = {suffix[1:]: "video" for suffix in VIDEO_SUFFIXES}
    # Mean and standard deviation of ImageNet, what most 2D weights were trained with.
    input = InputSpec(
        ("red", "green", "blue"),
        intensity=Intensity("window", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )

    def encode(self, raw: RawSample, card: DatasetCard) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the file's bytes by its suffix, and what a decode of all of it shows."""
        from inflate3d.data.samples.video_info import probe_video

        suffix = raw.video_suffix.lower().lstrip(".")
        if raw.video is None or suffix not in self.byte_members:
            raise InputError(f"no video, or suffix {suffix!r} is not one of {', '.join(self.byte_members)}")
        _check_targets(card)
        return {suffix: raw.video}, probe_video(raw.video).to_record()

    def check(self, members: Mapping[str, Any], record: Mapping[str, Any], card: DatasetCard) -> None:
        """Refuse a sample without a video, or without what it shows."""
        _check_targets(card)
        if "video" not in members:
            raise InputError("has no video member")
        VideoInfo.from_record(record)

    def stage(
        self, options: VideoSample, card: DatasetCard, *, training: bool, augment: Any = None, where: str = "data"
    ) -> Stage:
        """Return the stage of clips."""
        from inflate3d.data.samples.video_stage import VideoStage

        return VideoStage(options, card, training=training, augment=augment, where=where)

    def files_of(self, files: Sequence[Path], card: DatasetCard) -> list[tuple[str, tuple[Path, ...]]]:
        """Return a case a file."""
        return [(stem(file, self.suffixes), (file,)) for file in files]

    def read(self, files: Sequence[Path], card: DatasetCard, *, where: str) -> RawSample:
        """Read the file as it is."""
        from inflate3d.data.raw.videos import read_video_case

        return read_video_case(files[0], where=where)

    def planes(
        self,
        image_CDHW: np.ndarray,
        count: int,
        *,
        spacing_mm: Spacing,
        mask_DHW: np.ndarray | None = None,
        maxima: bool = True,
    ) -> list[Plane]:
        """Return frames, evenly spaced."""
        return [Plane(f"frame {t}", 0, t, is_colour=True) for t in _evenly(image_CDHW.shape[1], count)]

    def raw_image(self, raw: RawSample, count: int) -> np.ndarray:
        """Return `count` frames, evenly spaced over the video, or all of a shorter one."""
        from inflate3d.data.samples.frames import decode_frames
        from inflate3d.data.samples.video_info import probe_video

        assert raw.video is not None, "a raw sample of a video holds one"
        info = probe_video(raw.video)
        return decode_frames(raw.video, _evenly(info.num_frames, count), info=info).transpose(3, 0, 1, 2)

    def encoding(self, values: Any, *, where: str) -> dict[str, Any]:
        """Return gop, short_side and crf (see VideoEncoding)."""
        from inflate3d.data.samples.reencode import VideoEncoding

        return asdict(VideoEncoding.from_dict(values, where=where))

    def reencode(self, raw: RawSample, encoding: Mapping[str, Any]) -> RawSample:
        """Return the video as h264 with a key frame every few frames."""
        from inflate3d.data.samples.reencode import SUFFIX, VideoEncoding, reencode

        assert raw.video is not None, "a raw sample of a video holds one"
        return replace(raw, video=reencode(raw.video, VideoEncoding(**encoding)), video_suffix=SUFFIX)


def _evenly(frames: int, count: int) -> list[int]:
    """Return `count` frames of so many, or all of them, evenly spaced."""
    evenly: list[int] = np.linspace(0, frames - 1, min(count, frames)).round().astype(int).tolist()
    return evenly


def _check_targets(card: DatasetCard) -> None:
    for name, target in card.targets.items():
        if target.per_voxel:
            raise InputError(f"target {name!r} is {target.describe()}; a compressed video has no grid for it")
