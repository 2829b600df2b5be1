"""Motions: clips of a thing or of a whole scene that moves, such that one frame tells nothing of how.

After Video Perlin Noise (WACV 2022) and "Learning Video Representations without Natural Videos" (arXiv:2410.24213).
Space is a torus, where a thing begins is drawn evenly, and so is how it is turned: whatever the motion, each single
frame has the same distribution.
"""

# T time, H W pixels along y x, 3 colours.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inflate3d.data.formula.rendering import smooth_noise

DIRECTIONS = ("right", "right_down", "down", "left_down", "left", "left_up", "up", "right_up")
CHANGES = ("steady", "faster", "slower", "reverse")
TURNS = ("still", "clockwise", "anticlockwise")


@dataclass(frozen=True)
class Motion:
    """direction, change, turn: indices of DIRECTIONS, CHANGES, TURNS. speed: mean pixels a frame."""

    direction: int
    change: int
    turn: int
    speed: float

    def path(self, num_frames: int) -> np.ndarray:
        """Return how far along the direction the thing is at each frame, (T,) in pixels; 0 at the first."""
        t = np.linspace(0, 1, num_frames)
        shape = {"steady": t, "faster": t * t, "slower": 1 - (1 - t) ** 2, "reverse": np.minimum(t, 1 - t)}
        return shape[CHANGES[self.change]] * self.speed * (num_frames - 1)


def draw_clip(
    motion: Motion,
    num_frames: int,
    size: int,
    draw: np.random.Generator,
    *,
    picture: np.ndarray | None = None,
    is_pan: bool = False,
) -> np.ndarray:
    """Return a clip (T, size, size, 3) uint8. picture: what the thing shows, (H, W, 3) uint8; else a texture.

    is_pan: all of the scene moves, and the thing turns within it; else the thing alone moves.
    """
    background = _texture(size, draw, low=20, high=150)
    for _ in range(int(draw.integers(0, 3))):  # things that stay
        patch, alpha = _thing(size, draw, None)
        _lay(background, patch, alpha, draw.uniform(0, size, 2))
    patch, alpha = _thing(size, draw, picture)
    start, begun = draw.uniform(0, size, 2), draw.uniform(0, 360)
    angle = 2 * np.pi * motion.direction / len(DIRECTIONS)
    step = np.array([np.sin(angle), np.cos(angle)])
    turning = {"still": 0.0, "clockwise": 1.0, "anticlockwise": -1.0}[TURNS[motion.turn]] * draw.uniform(6, 14)
    # Between pixels from the first frame on: how much a frame is smoothed must not tell the direction either.
    corner = draw.uniform(0, size, 2)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for i, along in enumerate(motion.path(num_frames)):
        frame = background.copy()
        turned = _turn(np.dstack([patch, alpha]), begun + turning * i)
        _lay(frame, turned[..., :3], turned[..., 3], start if is_pan else start + along * step)
        frames[i] = np.round(_moved(frame, corner + along * step) if is_pan else frame)
    return frames


def _moved(frame: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Return a frame moved by (y, x) pixels, linear between the four neighbours; what leaves comes in again."""
    for axis, distance in enumerate(by):
        whole = int(np.floor(distance))
        part = np.float32(distance - whole)
        frame = (1 - part) * np.roll(frame, whole, axis) + part * np.roll(frame, whole + 1, axis)
    return frame


def _texture(size: int, draw: np.random.Generator, *, low: float, high: float) -> np.ndarray:
    base = draw.uniform(low, high, 3).astype(np.float32)
    waves = [smooth_noise((size, size), draw, cells=int(draw.integers(3, max(4, size // 4)))) for _ in range(3)]
    return np.clip(base + np.stack(waves, -1) * float(draw.uniform(8, 30)), 0, 255).astype(np.float32)


def _thing(size: int, draw: np.random.Generator, picture: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return a patch (N, N, 3) float32 and how much of each pixel it covers, (N, N): a star of random radii."""
    edge = int(draw.integers(size // 4, size // 2))
    y, x = np.indices((edge, edge), np.float32) - np.float32((edge - 1) / 2)
    corners = int(draw.integers(2, 6))
    wave = 1 + float(draw.uniform(0, 0.35)) * np.cos(corners * np.arctan2(y, x) + float(draw.uniform(0, 6.28)))
    alpha = np.clip(edge / 2 / 1.35 * wave - np.hypot(y, x) + 0.5, 0, 1).astype(np.float32)
    if picture is None:
        return _texture(edge, draw, low=60, high=240), alpha
    top, left = (int(draw.integers(0, max(n - edge, 0) + 1)) for n in picture.shape[:2])
    cut = picture[top : top + edge, left : left + edge].astype(np.float32)
    return np.pad(cut, [(0, edge - cut.shape[0]), (0, edge - cut.shape[1]), (0, 0)], mode="edge"), alpha


def _turn(patch: np.ndarray, degrees: float) -> np.ndarray:
    """Return a square patch turned about its middle, each pixel the nearest of what was; 0 beyond."""
    edge, angle = len(patch), np.deg2rad(degrees)
    y, x = np.indices((edge, edge)) - (edge - 1) / 2
    from_y = np.round(np.cos(angle) * y - np.sin(angle) * x + (edge - 1) / 2).astype(int)
    from_x = np.round(np.sin(angle) * y + np.cos(angle) * x + (edge - 1) / 2).astype(int)
    inside = (from_y >= 0) & (from_y < edge) & (from_x >= 0) & (from_x < edge)
    turned: np.ndarray = patch[from_y.clip(0, edge - 1), from_x.clip(0, edge - 1)] * inside[..., None]
    return turned


def _lay(frame: np.ndarray, patch: np.ndarray, alpha: np.ndarray, place: np.ndarray) -> None:
    """Lay a patch onto a frame, its first pixel at `place` (y, x), between pixels too; what leaves comes in again."""
    size, edge = len(frame), len(patch)
    whole = np.floor(place).astype(int)
    part = (place - whole).astype(np.float32)
    padded = np.pad(np.dstack([patch * alpha[..., None], alpha]), [(1, 1), (1, 1), (0, 0)])
    # Linear between the four neighbours, of colour times cover and of cover.
    moved = sum(
        wy * wx * padded[1 - dy : 1 - dy + edge + 1, 1 - dx : 1 - dx + edge + 1]
        for dy, wy in ((0, 1 - part[0]), (1, part[0]))
        for dx, wx in ((0, 1 - part[1]), (1, part[1]))
    )
    rows, columns = ((w + np.arange(edge + 1)) % size for w in whole)
    at = np.ix_(rows, columns)
    frame[at] = frame[at] * (1 - moved[..., 3:]) + moved[..., :3]
