"""Renderings: what a scanner might make of solids, with textures, bias field, blur and noise."""

from __future__ import annotations

import numpy as np

Shape = tuple[int, int, int]


def smooth_noise(shape: tuple[int, ...], draw: np.random.Generator, *, cells: int) -> np.ndarray:
    """Return noise of about `cells` waves along the longest axis, float32 with mean 0 and standard deviation 1.

    Random values on a coarse grid, interpolated linearly along one axis after the other.
    """
    longest = max(shape)
    coarse = [max(2, round(cells * n / longest) + 1) for n in shape]
    noise = draw.standard_normal(coarse, dtype=np.float32)
    for axis, (n, known) in enumerate(zip(shape, coarse, strict=True)):
        noise = _along(axis, _ramps(n, known), noise)
    noise -= noise.mean()
    noise /= max(float(noise.std()), 1e-6)
    return noise


def scan(contrast: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return what a scanner makes of intensities in 0..1, (D, H, W) uint8: blur, bias field, noise, and a window."""
    image = blur(contrast, sigma=float(draw.uniform(0, 0.9)))
    image = image * bias_field(image.shape, draw)
    noise = draw.standard_normal(image.shape, dtype=np.float32)
    noise *= np.float32(draw.uniform(0.005, 0.06))
    image += noise
    low, high = float(image.min()), float(image.max())
    return ((image - low) * np.float32(255 / max(high - low, 1e-6)) + np.float32(0.5)).astype(np.uint8)


def bias_field(shape: Shape, draw: np.random.Generator) -> np.ndarray:
    """Return a smooth factor about 1, float32: the product of one wave of at most half a turn along each axis."""
    field = np.ones(1, np.float32)
    for axis, n in enumerate(shape):
        strength, phase, turns = draw.uniform(0, 0.3), draw.uniform(0, 2 * np.pi), draw.uniform(0.2, 0.5)
        wave = np.exp(strength * np.cos(phase + 2 * np.pi * turns * np.arange(n) / n)).astype(np.float32)
        field = field * wave.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return field


def blur(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Return an image through a Gaussian of `sigma` voxels, along one axis after the other; edges are repeated."""
    if sigma < 0.2:
        return image
    radius = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    bands = {n: _band(n, kernel.astype(np.float32)) for n in set(image.shape)}
    for axis, n in enumerate(image.shape):
        image = _along(axis, bands[n], image)
    return image


def _band(n: int, kernel: np.ndarray) -> np.ndarray:
    """Return what convolves n values with a kernel of odd length, (n, n) float32; edges are repeated."""
    band, rows, radius = np.zeros((n, n), np.float32), np.arange(n), len(kernel) // 2
    for offset, weight in enumerate(kernel, start=-radius):
        band[rows, np.minimum(np.maximum(rows + offset, 0), n - 1)] += weight
    return band


def _ramps(n: int, known: int) -> np.ndarray:
    """Return what interpolates `known` values to n linearly, (n, known) float32."""
    place = np.linspace(0, known - 1, n, dtype=np.float32)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(known, dtype=np.float32)), 0)


def _along(axis: int, matrix: np.ndarray, array: np.ndarray) -> np.ndarray:
    """Return an array with a matrix (new, old) applied along an axis: BLAS does that faster than sums of slices."""
    if axis == array.ndim - 1:
        return array @ matrix.T
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    flat = array.reshape(int(np.prod(before)), array.shape[axis], -1)
    moved: np.ndarray = (matrix @ flat).reshape(*before, len(matrix), *after)
    return moved
