"""Steps down: where a net shrinks space on its main road, and how time is strided along with it.

Most nets shrink in convolutions and pools, which take a stride along D themselves. Where a net shrinks in a way of its
own (token merging, pools inside attention, functional pools), the stride moves up the tree of modules, to the first
whose output can be strided as a whole. Where the net's own forward counts its batch once and relies on it, the modules
it calls run at their own rate and hold their frames in between. Neither needs to know the architecture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from inflate3d.inflation.assign import is_tile, pool_kernel
from inflate3d.inflation.convolution import FoldedConv
from inflate3d.inflation.layers import AtRate, FoldedPool, FrameStride
from inflate3d.inflation.mixing import mix, unmix
from inflate3d.inflation.plan import InflationPlan
from inflate3d.inflation.trace import LayerTrace, Trace


@dataclass(frozen=True)
class Step:
    """A module that goes from one level to a deeper one."""

    name: str
    level_in: int
    level_out: int


class Strides:
    """The strides along D of one net: which modules take them, and which hold their frames. `apply` puts them in."""

    def __init__(self, net: nn.Module, trace: Trace, plan: InflationPlan) -> None:
        self.net, self.trace, self.plan = net, trace, plan
        self.modules: dict[str, Any] = dict(net.named_modules())
        self.steps = {step.name: step for step in find_steps(trace)}
        self.holds: list[str] = []
        self.is_on = False
        self.tube = 1
        self.deepest = max((s.level_out for s in self.steps.values()), default=0)
        self.steps |= {name: step for name, step in self._single().items() if name not in self.steps}
        self._applied: list[tuple[str, type]] = []

    def _single(self) -> dict[str, Step]:
        """The layers that the plan names one by one."""
        named = [r for r in self.trace.values() if isinstance(self.modules[r.name], FoldedConv | FoldedPool)]
        return {r.name: Step(r.name, r.level_in or 0, r.level_out or 0) for r in named if self.plan.layer(r.name)}

    @property
    def total(self) -> int:
        """How many times D shrinks in the whole net."""
        return self.plan.stride(0, self.deepest)

    def rate(self, level: int | None) -> int:
        """How many times fewer frames there are at a level than the net was given (tubes count as one)."""
        level = level or 0
        # A step that stands for levels without a module of their own has strided for all of them.
        level = max([level, *(s.level_out for s in self.steps.values() if s.level_in < level <= s.level_out)])
        return max(1, self.plan.stride(0, min(level, self.deepest)) // self.tube)

    def apply(self) -> None:
        """Give every step its stride, in place of the ones that were there."""
        self.remove()
        self.tube = 1
        for step in self.steps.values():
            own = self.plan.layer(step.name)
            stride = own[1] if own else self.plan.stride(step.level_in, step.level_out)
            if stride > 1:
                self._stride(step, stride)
        self._use_tubes()
        if self.holds:
            for name in self._called_by_net():
                module = self.modules[name]
                mix(module, AtRate)
                module.hold = self.rate(self.trace[name].level_out) if name in self.holds else 1
                self._applied.append((name, AtRate))
        self.net.tube, self.is_on = self.tube, True  # type: ignore[assignment]

    def remove(self) -> None:
        """Take every stride away."""
        for name, mixin in reversed(self._applied):
            module = self.modules[name]
            if mixin is AtRate:
                unmix(module, mixin)
            elif mixin is FrameStride:
                unmix(module, mixin)
                del module.depth_stride
            elif mixin is FoldedPool:
                module.depth_kernel = module.depth_stride = 1
            else:
                module.depth_stride = 1
                if mixin is FoldedConv:
                    module.tube = False
        self._applied.clear()
        self.net.tube, self.is_on = 1, False  # type: ignore[assignment]

    def _stride(self, step: Step, stride: int) -> None:
        module, record = self.modules[step.name], self.trace[step.name]
        mixin: type = next((m for m in (FoldedConv, FoldedPool) if isinstance(module, m)), FrameStride)
        if mixin is FrameStride:
            mix(module, FrameStride)
        module.depth_stride = stride
        if mixin is FoldedPool:
            module.depth_kernel = pool_kernel(module, record, self.plan)
        self._applied.append((step.name, mixin))

    def _use_tubes(self) -> None:
        """Let the net's input come as tubes of frames where the layers that see it are patch embeds that stride time.

        Then the batch has one size from the first line of the 2D forward on, which many transformers rely on.
        """
        first = [name for name, record in self.trace.items() if _reads_input(self.modules[name], record)]
        embeds: list[Any] = [self.modules[name] for name in first]
        tiles = [m for m in embeds if m.groups == 1 and is_tile(m) and isinstance(m, FoldedConv)]
        strides = {(m.depth_kernel, m.depth_stride) for m in tiles}
        if len(strides) == 1 and len(tiles) == len(embeds):
            ((kernel, stride),) = strides
            if kernel == stride > 1:
                self.tube = stride
                for module in embeds:
                    module.tube = True

    # ----------------------------------------------------------------------------------------------------- repair

    def hoist(self, name: str) -> bool:
        """Move the stride of a step to the module above it; False where there is none below the net itself."""
        step = self.steps[name]
        for above in self.trace.ancestors(name):
            if above.fold == 1 and _has_levels(above):
                self.steps = {n: s for n, s in self.steps.items() if not n.startswith(f"{above.name}.")}
                level_in, level_out = above.level_in or 0, max(above.level_out or 0, step.level_out)
                if level_out > level_in:
                    self.steps[above.name] = Step(above.name, level_in, level_out)
                return True
        return False

    def repair(self, finished: list[str]) -> bool:
        """Change the strides after a check that broke once the modules in `finished` had run; False: nothing is left.

        Inside a module that the net called, the last stride moves up. Past it, the net itself relies on its rows: then
        the last of the modules that it called holds its frames.
        """
        last = next((name for name in reversed(finished) if name in self.steps), None)
        if last is None:
            return False
        if self.trace.called_by_net(last) not in finished:
            return self.hoist(last)
        called = set(self._called_by_net())
        for name in reversed(finished):
            record = self.trace[name]
            if name in called and record.fold and name not in self.holds and self.rate(record.level_out) > 1:
                self.holds.append(name)
                return True
        return False

    def rate_of(self, frames: int, given: int) -> int:
        """Return how many times fewer `frames` are than the `given` ones: the rate of some level."""
        return next((r for r in map(self.rate, range(self.deepest + 1)) if -(-given // r) == frames), given)

    def _called_by_net(self) -> list[str]:
        return [name for name, record in self.trace.items() if not record.caller]


def find_steps(trace: Trace) -> list[Step]:
    """Return the innermost modules that shrink space on the main road, in order of calls.

    Off the main road is what a module above undoes or puts aside: keys and values reduced inside attention, a squeeze.
    Levels that are reached between modules are added to the step before.
    """
    shrinking = [r for r in trace.values() if _shrinks(r) and r.fold == 1 and not r.is_global]
    road = [r for r in shrinking if all(_shrinks(a) or not _has_levels(a) for a in trace.ancestors(r.name))]
    innermost = [r for r in road if not any(other.name.startswith(f"{r.name}.") for other in road)]
    return _with_levels_between([Step(r.name, r.level_in or 0, r.level_out or 0) for r in innermost])


def _with_levels_between(steps: list[Step]) -> list[Step]:
    covered = {level for s in steps for level in range(s.level_in + 1, s.level_out + 1)}
    deepest = max((s.level_out for s in steps), default=0)
    for level in range(1, deepest + 1):
        if level not in covered:
            before = [s for s in steps if s.level_out == level - 1]
            steps = [replace(s, level_out=level) if s in before else s for s in steps]
    return steps


def _shrinks(record: LayerTrace) -> bool:
    return _has_levels(record) and record.level_out > record.level_in  # type: ignore[operator]


def _has_levels(record: LayerTrace) -> bool:
    return record.level_in is not None and record.level_out is not None


def _reads_input(module: nn.Module, record: LayerTrace) -> bool:
    return isinstance(module, nn.Conv2d) and record.level_in == 0
