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
    noise = draw.normal(size=coarse).astype(np.float32)
    for axis, n in enumerate(shape):
        place = np.linspace(0, noise.shape[axis] - 1, n, dtype=np.float32)
        low = np.minimum(place.astype(int), noise.shape[axis] - 2)
        weight = (place - low).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        noise = noise.take(low, axis) * (1 - weight) + noise.take(low + 1, axis) * weight
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def scan(contrast: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return what a scanner makes of intensities in 0..1, (D, H, W) uint8: blur, bias field, noise, and a window."""
    image = blur(contrast, sigma=float(draw.uniform(0, 0.9)))
    image = image * bias_field(image.shape, draw)
    image += np.float32(draw.uniform(0.005, 0.06)) * draw.standard_normal(image.shape, dtype=np.float32)
    low, high = float(image.min()), float(image.max())
    return ((image - low) * np.float32(255 / max(high - low, 1e-6)) + np.float32(0.5)).astype(np.uint8)


def bias_field(shape: Shape, draw: np.random.Generator) -> np.ndarray:
    """Return a smooth factor about 1, float32: the product of one wave of at most half a turn along each axis."""
    field = np.ones(shape, np.float32)
    for axis, n in enumerate(shape):
        strength, phase, turns = draw.uniform(0, 0.3), draw.uniform(0, 2 * np.pi), draw.uniform(0.2, 0.5)
        wave = np.exp(strength * np.cos(phase + 2 * np.pi * turns * np.arange(n) / n)).astype(np.float32)
        field *= wave.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return field


def blur(image: np.ndarray, *, sigma: float) -> np.ndarray:
    """Return an image through a Gaussian of `sigma` voxels, along one axis after the other; edges are repeated."""
    if sigma < 0.2:
        return image
    radius = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    kernel /= kernel.sum()
    for axis in range(image.ndim):
        padded = np.pad(image, [(radius, radius) if i == axis else (0, 0) for i in range(image.ndim)], mode="edge")
        n = image.shape[axis]
        image = sum(  # type: ignore[assignment]
            weight * padded.take(range(i, i + n), axis) if axis else weight * padded[i : i + n]
            for i, weight in enumerate(kernel)
        )
    return image
