"""Contrast: random changes of intensity that leave every thing in its place."""

# B batch, C channel, D H W voxels.

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

KNOTS = 8


def change_contrast(image: Tensor, generator: torch.Generator, *, strength: float = 1.0) -> Tensor:
    """Return images (B, C, D, H, W) through a random curve, a smooth field and noise; drawn on the CPU for each sample.

    The curve has 8 knots between the sample's least and greatest value. At strength 1 it need not rise, so that bright
    may become dark, as between two MRI sequences; at 0 nothing changes. Range and type of the values are kept.
    """
    if strength == 0:
        return image
    flat = image.float().flatten(1)
    low, high = (v.view(-1, 1, 1, 1, 1) for v in (flat.amin(1), flat.amax(1)))
    span = (high - low).clamp_min(1e-6)
    place = ((image.float() - low) / span) * (KNOTS - 1)
    curve = torch.lerp(
        torch.linspace(0, 1, KNOTS).expand(len(image), -1), _draw((len(image), KNOTS), image, generator).cpu(), strength
    ).to(image.device)
    left = place.floor().clamp(0, KNOTS - 2)
    index = left.long().flatten(1)
    below, above = (curve.gather(1, i).view(image.shape) for i in (index, index + 1))
    changed = torch.lerp(below, above, place - left)
    size = image.shape[2:]
    field = _draw((len(image), 1, 3, 3, 3), image, generator) - 0.5
    field = interpolate(field, size=size, mode="trilinear", align_corners=True)
    noise = torch.randn(image.shape, generator=generator).to(image.device)
    changed = changed * (1 + 0.4 * strength * field) + 0.03 * strength * noise
    return (changed * span + low).to(image.dtype)


def _draw(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator).to(like.device)
