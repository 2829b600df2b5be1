"""Samples larger than what training saw: answered window by window, or seen through the one in their middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inflate3d.contracts import DatasetCard, Features, Prediction
from inflate3d.nn import sliding_window
from inflate3d.sample import IMAGE, Batch, Triple

Predict = Callable[[Batch], Prediction | Features]


@dataclass
class Windows:
    """How windows slide: their size (D, H, W) in training, the share of it that they overlap, and how many at once."""

    size: Triple
    overlap: float = 0.5
    batch_size: int = 4

    def fits(self, batch: Batch) -> bool:
        """Whether the image is one window."""
        return tuple(batch.image.shape[2:]) == tuple(self.size)

    def predict(self, batch: Batch, predict: Predict) -> Prediction | Features:
        """Return what `predict` says of whole samples: per voxel blended, else the mean over the windows."""
        found = [self._sample(batch, i, predict) for i in range(len(batch))]
        return found[0].like(torch.cat([answer.tensor for answer in found]))

    def _sample(self, batch: Batch, i: int, predict: Predict) -> Prediction | Features:
        answers: list[Prediction | Features] = []

        def of_windows(part: Tensor) -> Tensor:
            count = len(part)
            spacing = batch.spacing_mm[i : i + 1].expand(count, -1)
            answer = predict(Batch({IMAGE: part}, {}, [batch.keys[i]] * count, batch.dataset, spacing))
            answers[:] = [answer]
            return answer.tensor

        image = batch.image[i : i + 1]
        whole = sliding_window(image, of_windows, window=self.size, overlap=self.overlap, batch_size=self.batch_size)
        return answers[0].like(whole)

    def centre(self, batch: Batch, card: DatasetCard) -> Batch:
        """Return the batch cut to the window in the middle of each view; what is smaller stays as it is."""
        per_voxel = {name for name, target in card.targets.items() if target.per_voxel}
        views = {name: self._cut(view) for name, view in batch.views.items()}
        targets = {n: self._cut(value) if n in per_voxel else value for n, value in batch.targets.items()}
        return replace(batch, views=views, targets=targets)

    def _cut(self, tensor: Tensor) -> Tensor:
        for axis, size in zip((-3, -2, -1), self.size, strict=True):
            whole = tensor.shape[axis]
            if whole > size:
                tensor = tensor.narrow(axis, (whole - size) // 2, size)
        return tensor
