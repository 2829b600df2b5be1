"""InflationPlan: kernel and stride along D at every level of spatial reduction."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import Spacing, Triple

NUM_LEVELS = 6  # reductions 1, 2, 4, 8, 16, 32
DEEPEST = 7  # /128: some nets go past /32


def _is_positive(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real):
        return False
    return 0 < float(value) < math.inf


def _is_count(value: Any) -> bool:
    return _is_positive(value, whole=True)


@dataclass(frozen=True)
class InflationPlan:
    """How a 2D net is laid along D. Level l is where the map is 2**l times smaller than the image.

    kernels: kernel size along D of the spatial convolutions at each level. None means the op's own spatial size (3x3 ->
    3x3x3); a number is taken as it is, also where it is larger than the spatial kernel (7 makes 7x3x3 of a 3x3) or even
    (the center is then the earlier of the two middle slices). 1x1 convolutions stay 1x1x1. A patch embed that strides
    time takes tubes: its kernel along D is the stride. strides: stride along D of the step INTO each level; the first
    is 1. A step over several levels takes their product.
    The two lists need not be as long as the net is deep: levels past the end repeat the last kernel and take no
    stride, entries past the net's deepest level are not used. Pooling windows follow: as wide as their spatial size
    where the step strides along D, 1 otherwise. head_pool: frames averaged in one window before the classifier (I3D:
    2); None averages all.
    layers: what single convolutions and pools take in place of all that: (pattern of the module's name, kernel, stride)
    along D, as "layer3.*.conv1": [3, 1] in a mapping; of several patterns that match, the last. So 1x1 convolutions
    reach along D too, as in SlowFast. strides still says how many frames each level has.
    """

    name: str
    kernels: tuple[int | None, ...] = (None,) * NUM_LEVELS
    strides: tuple[int, ...] = (1,) * NUM_LEVELS
    head_pool: int | None = None
    layers: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"plan: name is {self.name!r}; expected a text")
        for field, allowed in (("kernels", "null (the op's own size) or an integer"), ("strides", "an integer")):
            values = getattr(self, field)
            if not isinstance(values, list | tuple) or not values:
                raise InputError(f"plan {self.name!r}: {field} is {values!r}; expected a list, one entry a level")
            if not all(_is_count(v) or (v is None and field == "kernels") for v in values):
                raise InputError(
                    f"plan {self.name!r}: {field} is {list(values)}; each entry must be {allowed} of at least 1"
                )
            object.__setattr__(self, field, tuple(None if v is None else int(v) for v in values))
        if self.strides[0] != 1:
            raise InputError(
                f"plan {self.name!r}: strides[0] is {self.strides[0]}; level 0 is the input itself, so it is 1. "
                f"A stride of {self.strides[0]} at the first halving of H and W is strides: [1, {self.strides[0]}, ...]"
            )
        if self.head_pool is not None and not _is_count(self.head_pool):
            raise InputError(
                f"plan {self.name!r}: head_pool is {self.head_pool!r}; it must be null or an integer of at least 1"
            )
        for layer in self.layers:
            if len(layer) != 3 or not isinstance(layer[0], str) or not all(_is_count(value) for value in layer[1:]):
                raise InputError(
                    f"plan {self.name!r}: layers has {layer!r}; expected a pattern of module names with a kernel and a "
                    "stride along D of at least 1, such as {'layer3.*.conv1': [3, 1]}"
                )

    def layer(self, name: str) -> tuple[int, int] | None:
        """Return the (kernel, stride) along D that a layer has of its own; None where its level decides."""
        name = name.removeprefix("body.")  # as which some of timm's feature nets hold the whole net
        return next(
            ((kernel, stride) for pattern, kernel, stride in reversed(self.layers) if fnmatchcase(name, pattern)), None
        )

    def kernel(self, level: int, spatial: int) -> int:
        """Return kD for an op of kernel size `spatial` whose output lies at `level`; 1x1 ops stay 1."""
        kernel = self.kernels[min(level, len(self.kernels) - 1)]
        return spatial if kernel is None or spatial == 1 else kernel

    def stride(self, from_level: int, to_level: int) -> int:
        """Return the stride along D of an op that goes from one level to a deeper one."""
        return math.prod(self.strides[from_level + 1 : to_level + 1])

    @property
    def total_stride(self) -> int:
        """How many times D shrinks from the input to the deepest level."""
        return math.prod(self.strides)

    @property
    def min_depth(self) -> int:
        """The fewest frames or slices that leave one whole `head_pool` window at the deepest level."""
        return ((self.head_pool or 1) - 1) * self.total_stride + 1

    def __str__(self) -> str:
        """One line for logs: 'slow: strides along D 1 1 1 1 1 1, kernels along D 1 1 1 1 own own'."""
        own = all(kernel is None for kernel in self.kernels)
        kernels = "as along H" if own else " ".join("own" if k is None else str(k) for k in self.kernels)
        single = "".join(f", {pattern} {kernel}/{stride}" for pattern, kernel, stride in self.layers)
        return f"{self.name}: strides along D {' '.join(map(str, self.strides))}, kernels along D {kernels}{single}"

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON values."""
        return {
            "name": self.name,
            "kernels": list(self.kernels),
            "strides": list(self.strides),
            "head_pool": self.head_pool,
            **({"layers": {pattern: own for pattern, *own in self.layers}} if self.layers else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> InflationPlan:
        """Read a plan from plain values; a missing entry takes the default, an unknown one is refused."""
        allowed = ("name", "kernels", "strides", "head_pool", "layers")
        for key in data:
            if key not in allowed:
                raise unknown_name("key", str(key), allowed, where="plan")
        return cls(**{"name": "custom", **data, "layers": _layers(data.get("layers", {}))})


def _layers(given: Any) -> tuple[Any, ...]:
    if not isinstance(given, Mapping) or not all(isinstance(own, list | tuple) for own in given.values()):
        raise InputError(f"plan: layers is {given!r}; expected a mapping such as {{'layer3.*.conv1': [3, 1]}}")
    return tuple((pattern, *own) for pattern, own in given.items())


_OWN = (None,) * NUM_LEVELS
PRESETS: dict[str, InflationPlan] = {
    plan.name: plan
    for plan in (
        # Fig. 3 of arXiv:1705.07750: symmetric kernels; the first two max-pools keep D, later ones halve it.
        InflationPlan("i3d", _OWN, (1, 2, 1, 1, 2, 2), head_pool=2),
        InflationPlan("isotropic", _OWN, (1, *(2,) * DEEPEST)),
        # SlowFast's slow path (arXiv:1812.03982): kernels along time in the last two stages, time is never strided.
        InflationPlan("slow", (1, 1, 1, 1, None, None), (1,) * NUM_LEVELS),
        InflationPlan("2d", (1,) * NUM_LEVELS, (1,) * NUM_LEVELS),
    )
}
PLAN_NAMES = ("auto", *PRESETS)


class NetInput(NamedTuple):
    """What a net is given of one dataset: a sample's (D, H, W), and its spacing (z, y, x); None where unknown."""

    size: Triple | None = None
    spacing_mm: Spacing | None = None


def named_plan(plan: str | InflationPlan | Mapping[str, Any]) -> InflationPlan | Literal["auto"]:
    """Return the plan that a preset's name or a mapping means; a plan, and "auto", are returned as they are."""
    if isinstance(plan, InflationPlan):
        return plan
    if isinstance(plan, Mapping):
        return InflationPlan.from_dict(plan)
    if plan == "auto":
        return "auto"
    if plan not in PRESETS:
        raise unknown_name("plan", str(plan), PLAN_NAMES)
    return PRESETS[plan]


def resolve_plan(
    plan: str | InflationPlan | Mapping[str, Any],
    *,
    input_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    datasets: Iterable[NetInput] = (),
    own: InflationPlan | None = None,
) -> InflationPlan:
    """Return the plan that a net is built with. This is the one place where "auto" becomes a plan.

    1. A plan, a preset's name or a mapping is itself. "auto" is:
    2. own, the plan of published weights, where there is one; a given input_size with fewer slices than that needs
       takes strides off its deep end.
    3. What suits every dataset (see auto_plan); input_size and spacing_mm stand, where given, for each dataset's own.
    4. "isotropic", where nothing is known.
    """
    named = named_plan(plan)
    size, spacing = as_triple(input_size, "input_size"), as_triple(spacing_mm, "spacing_mm")
    if named != "auto":
        return named
    if own is not None:
        return own if size is None else plan_for_depth(own, size[0])
    inputs = [NetInput(size or d.size, spacing or d.spacing_mm) for d in [*datasets] or [NetInput()]]
    return auto_plan(inputs) if any(map(any, inputs)) else PRESETS["isotropic"]


def auto_plan(inputs: Sequence[NetInput]) -> InflationPlan:
    """Return a plan that suits every one of these inputs.

    D is strided where all of them bear it: where its spacing is at most 1.5 times that of H and W there and two slices
    are left (or the input's own count, if that is one). Kernels reach along D where any of them has a use for it: where
    its spacing is at most twice that of H and W, nnU-Net's rule, and there is more than one slice. So no dataset
    loses its depth to another, and none is blind along D for the sake of another. An unknown spacing counts as equal,
    an unknown depth as endless.
    """
    depths = [float(given.size[0]) if given.size else math.inf for given in inputs]
    spacings = [given.spacing_mm or (1.0, 1.0, 1.0) for given in inputs]
    along, in_plane = [z for z, _, _ in spacings], [min(y, x) for _, y, x in spacings]
    kernels: list[int | None] = []
    strides = []
    for level in range(DEEPEST + 1):
        bear = all(z <= 1.5 * p and d > 2 for z, p, d in zip(along, in_plane, depths, strict=True))
        stride = 2 if level > 0 and bear else 1
        in_plane = [p * 2 if level > 0 else p for p in in_plane]
        along = [z * stride for z in along]
        depths = [d if d == math.inf else math.ceil(d / stride) for d in depths]
        strides.append(stride)
        use = any(z <= 2 * p and d > 1 for z, p, d in zip(along, in_plane, depths, strict=True))
        kernels.append(None if use else 1)
    return InflationPlan("auto", tuple(kernels), tuple(strides))


def plan_for_depth(plan: InflationPlan, depth: int) -> InflationPlan:
    """Return the plan with its deepest strides along D set to 1, until `depth` slices leave one at the level of /32.

    A plan that names single layers keeps all of its strides.
    """
    if plan.layers:
        return plan
    strides = list(plan.strides)
    for level in reversed(range(min(len(strides), NUM_LEVELS))):
        if depth >= max(math.prod(strides[:NUM_LEVELS]), replace(plan, strides=tuple(strides)).min_depth):
            break
        strides[level:] = [1] * (len(strides) - level)
    return replace(plan, strides=tuple(strides))


def as_triple(value: Sequence[Any] | None, name: str) -> Any:
    """Check a size ("..._size": whole numbers) or a spacing of three positive entries (D, H, W); None stays None."""
    if value is None:
        return None
    whole = name.endswith("_size")
    entries = tuple(value) if isinstance(value, Iterable) else (value,)
    if len(entries) != 3 or not all(_is_positive(v, whole) for v in entries):
        kind = "positive whole numbers" if whole else "positive numbers"
        raise InputError(f"{name} is {entries!r}; expected three {kind} (D, H, W)")
    return entries
