"""Small pictures of stored samples: the planes that their medium shows, the first mask of classes over them."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.image import imsave

from inflate3d.contracts import DatasetCard, Plane, RawSample, medium_of
from inflate3d.evaluation.pictures.pixels import stretch, tint

MOST_PLANES = 4
HEIGHT = 112
"""Of a thumbnail, in pixels of the page."""
_WIDEST = 3.0  # times its height
_QUALITY = {"quality": 88, "subsampling": 0}


@dataclass(frozen=True)
class Thumbnail:
    """A JPEG as an address that holds it, and its size on the page."""

    address: str
    width: int
    height: int


def draw_thumbnails(raw: RawSample, card: DatasetCard, image: Any = None) -> list[Thumbnail]:
    """Return up to four pictures of a stored sample: slices along each axis, frames. In chunks: reads those alone.

    image: what its medium shows of it (`raw_image` of MOST_PLANES), where that is at hand.
    """
    medium = medium_of(card)
    image = medium.raw_image(raw, MOST_PLANES) if image is None else image
    own = (raw.targets.get(name) for name, t in card.targets.items() if t.per_voxel and t.names)
    mask = next((np.asarray(value) for value in own if value is not None), None)
    spacing_mm = raw.spacing_mm or (1.0, 1.0, 1.0)
    planes = medium.planes(image, MOST_PLANES, spacing_mm=spacing_mm, mask_DHW=mask, maxima=False)
    return [_draw(image, mask, plane) for plane in planes]


def _draw(image: Any, mask: np.ndarray | None, plane: Plane) -> Thumbnail:
    """image: (C, D, H, W), an array or chunks, of which the slice is read."""
    assert plane.index is not None
    box = [slice(None)] * 3
    box[plane.axis] = slice(plane.index, plane.index + 1)
    alone = replace(plane, index=0)
    pixels = np.atleast_3d(stretch(alone.of(np.asarray(image[(..., *box)]))))
    pixels = pixels.transpose(1, 2, 0) if plane.is_colour else np.repeat(pixels, 3, axis=2)
    height, width = pixels.shape[:2]
    wide = float(np.clip(width / (height * plane.aspect), 1 / _WIDEST, _WIDEST))
    rows, columns = _every(height, HEIGHT), _every(width, round(HEIGHT * wide))
    pixels = pixels[rows][:, columns]
    if mask is not None:
        colours = tint(alone.of_mask(mask[tuple(box)])[rows][:, columns])
        pixels = pixels + colours[..., 3:] * (colours[..., :3] - pixels)
    if not plane.is_colour:  # rows of a volume grow upwards
        pixels = pixels[::-1]
    return Thumbnail(_as_address(pixels), max(1, round(HEIGHT * wide)), HEIGHT)


def _every(count: int, most: int) -> np.ndarray:
    """Indices of at most so many of `count` rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _as_address(pixels_HWC: np.ndarray) -> str:
    file = io.BytesIO()
    imsave(file, np.ascontiguousarray((255 * pixels_HWC).round().astype(np.uint8)), format="jpeg", pil_kwargs=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
