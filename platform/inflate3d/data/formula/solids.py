"""Solids by formula: superquadrics, prisms, tori, cones and shells, joined and cut, as signed distances on a grid.

A class of formula-driven supervised learning is a formula with random parameters, and its samples are that formula
turned and varied (FDSL: Kataoka et al., arXiv:2101.08515; for volumes PrimGeoSeg, arXiv:2401.03665).
"""

# D H W voxels along z y x; points are (3, ...) in z, y, x order, in units of half the grid's edge.

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

KINDS = ("superquadric", "prism", "torus", "cone", "shell")
_SMALLEST = 0.05


@dataclass(frozen=True)
class Part:
    """One primitive. size: half extents along its own axes. place: its middle. turn: (3, 3) rotation into its axes.

    exponents: of a superquadric (Barr 1981): 2 is an ellipsoid, large is a box, small is a star. sides: of a prism.
    cuts: it is taken away from what came before, instead of joined.
    """

    kind: str
    size: np.ndarray
    place: np.ndarray
    turn: np.ndarray
    exponents: tuple[float, float] = (2.0, 2.0)
    sides: int = 4
    cuts: bool = False

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return about how far points (3, N) are outside, negative inside; float32 (N,)."""
        own = self.turn @ (points - self.place[:, None])
        distance: np.ndarray = _DISTANCES[self.kind](self, own)
        return distance


@dataclass(frozen=True)
class Solid:
    """Parts, joined or cut in order. wall: its thickness where it is hollow."""

    parts: tuple[Part, ...]
    wall: float | None = None

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return about how far points (3, N) are outside, negative inside; float32 (N,)."""
        found = self.parts[0].distance(points)
        for part in self.parts[1:]:
            other = part.distance(points)
            found = np.maximum(found, -other) if part.cuts else np.minimum(found, other)
        return found if self.wall is None else np.abs(found + self.wall / 2) - self.wall / 2

    def sphere(self) -> tuple[np.ndarray, float]:
        """Return the middle (3,) and radius of about the least ball that holds the solid.

        Looked for on a coarse grid, and then on closer ones.
        """
        middle = np.zeros(3, np.float32)
        radius = max(float(np.linalg.norm(p.place) + np.linalg.norm(p.size)) for p in self.parts if not p.cuts)
        for _ in range(3):
            axis = np.linspace(-radius, radius, 10, dtype=np.float32)
            points = middle[:, None] + np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
            step = 2 * radius / 9
            held = points[:, self.distance(points) < step / 3]
            if not held.size:
                break
            middle = (held.min(1) + held.max(1)) / 2
            radius = min(max(float(np.sqrt(((held - middle[:, None]) ** 2).sum(0).max())), step), radius)
        return middle, radius


def draw_solid(draw: np.random.Generator) -> Solid:
    """Draw a formula: one to four parts, the first in the middle."""
    first = _draw_part(draw, 0.45, 0.9)
    parts = [replace(first, place=np.zeros(3, np.float32))]
    for _ in range(int(draw.integers(0, 4))):
        part = _draw_part(draw, 0.2, 0.6)
        place = _direction(draw) * draw.uniform(0.3, 1.0) * float(first.size.mean())
        parts.append(replace(part, place=place.astype(np.float32), cuts=bool(draw.random() < 0.4)))
    return Solid(tuple(parts))


def vary(solid: Solid, draw: np.random.Generator, *, hollow: float = 0.25) -> Solid:
    """Return another instance of a formula: every number moved a little; a share `hollow` of them has a wall."""
    parts = tuple(
        replace(
            part,
            size=(part.size * np.exp(draw.normal(0, 0.08, 3))).astype(np.float32),
            place=(part.place + draw.normal(0, 0.04, 3)).astype(np.float32),
            exponents=(_near(part.exponents[0], draw), _near(part.exponents[1], draw)),
        )
        for part in solid.parts
    )
    return Solid(parts, wall=float(draw.uniform(0.1, 0.2)) if draw.random() < hollow else None)


def draw_turn(draw: np.random.Generator) -> np.ndarray:
    """Draw a rotation, each as likely: (3, 3) float32 from a random unit quaternion (Shoemake 1992)."""
    return _turn_of(draw.normal(size=4))


def draw_upright_turn(draw: np.random.Generator, *, tilt_degrees: float = 15.0) -> np.ndarray:
    """Draw a rotation about the first axis (z), each as likely, after a tilt of at most so much: (3, 3) float32."""
    angle, towards = draw.uniform(0, 2 * np.pi, 2)
    tilt = np.deg2rad(draw.uniform(0, tilt_degrees)) / 2
    tilted = np.array([np.cos(tilt), 0, np.sin(tilt) * np.cos(towards), np.sin(tilt) * np.sin(towards)])
    return _turn_of(np.array([np.cos(angle / 2), np.sin(angle / 2), 0, 0])) @ _turn_of(tilted)


TURNINGS = {"any": draw_turn, "upright": draw_upright_turn}
"""What `turns` of the formula sets may be."""


def _turn_of(quaternion: np.ndarray) -> np.ndarray:
    """Return (3, 3) float32 of a quaternion (w, and the three axes) of any length."""
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        np.float32,
    )


def occupancy(
    solid: Solid, shape: tuple[int, int, int], *, middle: np.ndarray, radius: float, turn: np.ndarray
) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """Return how much of each voxel a solid fills, float32 in 0..1, in the box of the grid that can hold it.

    middle: (z, y, x) in voxels, and radius: in voxels, of the ball that holds the solid. turn: (3, 3).
    """
    low = np.clip(np.floor(middle - radius - 1).astype(int), 0, None)
    high = np.minimum(np.ceil(middle + radius + 2).astype(int), shape)
    box = tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))
    axes = [np.arange(s.start, s.stop, dtype=np.float32) - m for s, m in zip(box, middle, strict=True)]
    sizes = [len(axis) for axis in axes]
    place, reach = solid.sphere()
    scale = reach / radius
    points = np.empty((3, *sizes), np.float32)
    for i, axis in enumerate(axes):
        points[i] = (axis * scale).reshape([-1 if j == i else 1 for j in range(3)])
    own = turn @ points.reshape(3, -1) + place[:, None]
    distance = solid.distance(own).reshape(sizes)
    return np.clip(0.5 - distance / scale, 0, 1, dtype=np.float32), box  # type: ignore[return-value]


def _draw_part(draw: np.random.Generator, least: float, most: float) -> Part:
    return Part(
        kind=KINDS[int(draw.integers(len(KINDS)))],
        size=draw.uniform(least, most, 3).astype(np.float32),
        place=np.zeros(3, np.float32),
        turn=draw_turn(draw),
        exponents=(float(np.exp(draw.uniform(-0.2, 2.1))), float(np.exp(draw.uniform(-0.2, 2.1)))),
        sides=int(draw.integers(3, 8)),
    )


def _near(value: float, draw: np.random.Generator) -> float:
    return value * float(np.exp(draw.normal(0, 0.08)))


def _direction(draw: np.random.Generator) -> np.ndarray:
    v = draw.normal(size=3)
    return v / np.linalg.norm(v)


def _superquadric(part: Part, own: np.ndarray) -> np.ndarray:
    across, along = part.exponents
    z, y, x = np.abs(own) / part.size[:, None]
    inside = _power(_power(x, across) + _power(y, across), along / across) + _power(z, along)
    return (_power(inside, 1 / along) - 1) * part.size.min()


def _power(x: np.ndarray, exponent: float) -> np.ndarray:
    # Through the logarithm, which NumPy reckons several numbers at a time.
    return np.exp(np.float32(exponent) * np.log(np.maximum(x, np.float32(1e-12))))


def _prism(part: Part, own: np.ndarray) -> np.ndarray:
    z, y, x = own / part.size[:, None]
    angles = 2 * np.pi * np.arange(part.sides) / part.sides
    across = np.full(x.shape, -np.inf, np.float32)
    for angle in angles:
        np.maximum(across, np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y, out=across)
    return np.maximum(across - np.float32(np.cos(np.pi / part.sides)), np.abs(z) - 1) * part.size.min()


def _torus(part: Part, own: np.ndarray) -> np.ndarray:
    z, y, x = own
    ring = max(float(part.size[1:].mean()), _SMALLEST)
    tube = min(max(float(part.size[0]) * 0.5, _SMALLEST), 0.6 * ring)
    return np.sqrt((np.sqrt(x * x + y * y) - (ring - tube)) ** 2 + z * z) - np.float32(tube)


def _cone(part: Part, own: np.ndarray) -> np.ndarray:
    z, y, x = own / part.size[:, None]
    side = np.sqrt(x * x + y * y) - (1 - z) / 2
    return np.maximum(side, np.abs(z) - 1) * part.size.min()


def _shell(part: Part, own: np.ndarray) -> np.ndarray:
    """Half of a hollow superquadric: a bowl."""
    wall = np.float32(max(0.3 * float(part.size.min()), _SMALLEST))
    bowl = np.abs(_superquadric(part, own) + wall / 2) - wall / 2
    return np.maximum(bowl, own[0])


_DISTANCES = {"superquadric": _superquadric, "prism": _prism, "torus": _torus, "cone": _cone, "shell": _shell}
