"""From a video's members to a Sample: only the frames of the clip are decoded, then cropped, augmented, normalised."""

# C channel, T frames, H W pixels.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inflate3d.contracts import DatasetCard
from inflate3d.data.samples.augment import AugmentSpec, VideoAugment
from inflate3d.data.samples.boxes import centre, frame_indices, random_start
from inflate3d.data.samples.intensity import Normalise
from inflate3d.data.samples.options import VideoSample
from inflate3d.data.samples.record import stored_value
from inflate3d.data.samples.video_info import VideoInfo
from inflate3d.sample import IMAGE, Sample
from inflate3d.seeds import generator, mix


class VideoStage:
    """A clip with its targets; draws come from the seed alone, evaluation draws nothing."""

    def __init__(
        self,
        options: VideoSample,
        card: DatasetCard,
        *,
        training: bool,
        augment: AugmentSpec | None = None,
        where: str = "data",
    ) -> None:
        self.options, self.training, self.targets = options, training, dict(card.targets)
        self.augment = VideoAugment(augment, where=f"{where}.augment") if augment and training else None
        intensity = card.input.intensity
        intensity = replace(intensity, mean=options.mean or intensity.mean, std=options.std or intensity.std)
        self.normalise = Normalise(intensity, 3, where=f"card of {card.name}")
        levels = np.arange(256) / 255
        self.brighter = None if options.gamma is None else np.rint(levels**options.gamma * 255).astype(np.uint8)

    def __call__(self, key: str, members: Mapping[str, Any], seed: int, out: Tensor | None = None) -> Sample:
        """Return image (3, T, H, W) and the targets; spacing_mm[0] is the mean seconds between two frames."""
        record, options = members["json"], self.options
        draw = generator(seed, "crop") if self.training else None
        info = VideoInfo.from_record(record)
        frames = frame_indices(info.num_frames, options.num_frames, options.frame_interval, draw)
        clip_THWC = self.decode(members["video"], frames, info)
        shape, size = clip_THWC.shape[1:3], (options.crop_size, options.crop_size)
        y, x = random_start(shape, size, draw) if draw is not None else centre(shape, size)
        clip_THWC = clip_THWC[:, y : y + size[0], x : x + size[1]]
        if self.brighter is not None:
            clip_THWC = self.brighter[clip_THWC]
        clip_CTHW = clip_THWC.transpose(3, 0, 1, 2)
        if self.augment is not None:
            clip_TCHW = torch.from_numpy(np.ascontiguousarray(clip_CTHW.swapaxes(0, 1)))
            clip_CTHW = self.augment(clip_TCHW, seed=mix(seed, "augment")).numpy().swapaxes(0, 1)
        image = torch.from_numpy(self.normalise(clip_CTHW, out_CDHW=None if out is None else out.numpy()))
        targets = {name: target.tensor(stored_value(record, name)) for name, target in self.targets.items()}
        return Sample(key, {IMAGE: image}, targets, (info.step_seconds(frames, options.frame_interval), 1.0, 1.0))

    def decode(self, video: Any, frames: list[int], info: VideoInfo) -> np.ndarray:
        """Return these frames, scaled to short_side."""
        from inflate3d.data.samples.frames import decode_frames  # FFmpeg, which volumes do without

        return decode_frames(video, frames, short_side=self.options.short_side, info=info)
