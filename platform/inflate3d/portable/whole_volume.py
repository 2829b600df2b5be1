"""WholeVolume: a net that answers windows becomes one that answers volumes of any size, as TorchScript."""

# B batch, C channels, K answers, X Y Z voxels as NIfTI files hold them, D H W those of our nets (z, y, x).

from __future__ import annotations

import torch
from torch import Tensor, nn

from inflate3d.nn.sliding_window import gaussian_weight, starts
from inflate3d.sample import Triple


class WholeVolume(nn.Module):
    """Normalised volumes (B, C, X, Y, Z) -> what `platform predict` says of each voxel, (B, K, X, Y, Z).

    It pads, cuts and blends as inflate3d.nn.sliding_window and the evaluation view of volumes do, in words that
    torch.jit.script knows, so that a file holds all of it.
    """

    def __init__(self, net: nn.Module, window: Triple, *, overlap: float, channels: int) -> None:
        """net: (B, channels, *window) -> (B, K, *window). One grey channel is repeated for a net of more."""
        super().__init__()
        self.net, self.channels, self.overlap = net, channels, overlap
        self.depth, self.height, self.width = window
        self.register_buffer("weight", gaussian_weight(window))

    def forward(self, volume_BCXYZ: Tensor) -> Tensor:
        """Return the answers, for the voxels given."""
        image = volume_BCXYZ.transpose(2, 4)
        depth, height, width = image.shape[2], image.shape[3], image.shape[4]
        size = [depth, height, width]
        d, h, w = max(self.depth - depth, 0), max(self.height - height, 0), max(self.width - width, 0)
        before = [(d + 1) // 2, (h + 1) // 2, (w + 1) // 2]
        lowest = image.amin(dim=[2, 3, 4], keepdim=True)  # what is beyond the volume is its minimum
        padded = lowest.repeat(1, 1, depth + d, height + h, width + w)
        _inside(padded, before, size)[:] = image
        answer = self.in_windows(padded.expand(-1, self.channels, -1, -1, -1))
        return _inside(answer, before, size).transpose(2, 4)

    def in_windows(self, image: Tensor) -> Tensor:
        """Return the blended answers for an image that is nowhere smaller than the window."""
        total = torch.zeros_like(image[:, :1])
        norm = torch.zeros_like(image[:1, :1])
        for d in starts(image.shape[2], self.depth, self.overlap):
            for h in starts(image.shape[3], self.height, self.overlap):
                for w in starts(image.shape[4], self.width, self.overlap):
                    part = image[:, :, d : d + self.depth, h : h + self.height, w : w + self.width]
                    found = self.net(part) * self.weight
                    if total.shape[1] != found.shape[1]:
                        total = total.expand(-1, found.shape[1], -1, -1, -1).clone()
                    total[:, :, d : d + self.depth, h : h + self.height, w : w + self.width] += found
                    place = norm[:, :, d : d + self.depth, h : h + self.height, w : w + self.width]
                    place += self.weight  # type: ignore[arg-type]
        return total / norm


def _inside(whole_BCDHW: Tensor, first: list[int], size: list[int]) -> Tensor:
    part = whole_BCDHW[:, :, first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    return part[..., first[2] : first[2] + size[2]]
