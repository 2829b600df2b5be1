"""What inflation does to an architecture, measured: the rows of docs/pass-table.md (make pass-table).

Each 2D net is built with random weights, inflated, and compared with the inflated one on clips that repeat one image;
then frames are reordered. Of inflation's self-check only the comparison is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inflate3d.errors import InputError
from inflate3d.inflation import PRESETS, Inflation, inflate_in_place
from inflate3d.inflation.taps import TapName, Taps, inflate_kernel
from inflate3d.inflation.trace import tensors_of
from inflate3d.inflation.verify import static_error
from inflate3d.models.sources.image_size import size_options
from inflate3d.models.sources.timm_nets import build_timm, side_step, trace_sizes
from inflate3d.models.sources.torchvision_nets import build_torchvision
from inflate3d.models.spec import NetSpec

DEPTH = 9  # frames of a clip: not a multiple of a stride, unlike H and W, and enough for I3D's last pool
SMALL = (64, 64)
MOST_FP64, MOST_FP32 = 1e-10, 1e-4
MOST_ROUNDINGS = 4  # in fp32 a net may also differ by this many times its rounding in 2D
LEAST_ORDER = 1e-6  # relative to the change by another clip; rounding gives 1e-15


@dataclass(frozen=True)
class Case:
    """How a net is inflated."""

    taps: TapName
    plan: str


CASES = (
    Case("mean", "isotropic"),
    Case("center", "isotropic"),
    Case("overshoot", "isotropic"),
    Case("mean", "i3d"),
    Case("mean", "slow"),
)
FULL_CASE = CASES[1]  # features, compilation and export are tried once per net


@dataclass(frozen=True)
class Row:
    """Measurements of one net in one case. "" in compiles and exports: not tried; else "yes" or the error.

    fp64, fp32: static_error of logits and features. fp32_2d: the same between the 2D net in float32 and in
    float64, on one image. order: how much the output for a clip changes when its frames are reordered, relative to
    another clip's output. depths: D at the deepest map, of DEPTH at the input. levels: feature maps of
    features_only, each of the right size and equal to the 2D net's.
    """

    name: str
    taps: str
    plan: str
    fp64: float = float("nan")
    fp32: float = float("nan")
    fp32_2d: float = float("nan")
    order: float = float("nan")
    depths: int = 0
    stride: int = 0
    levels: int = -1
    compiles: str = ""
    exports: str = ""
    failure: str = ""

    @property
    def is_exact_in_fp32(self) -> bool:
        """Whether float32 differs from the 2D net only by a little or by the 2D net's own rounding."""
        return self.fp32 <= MOST_FP32 or self.fp32 <= MOST_ROUNDINGS * self.fp32_2d

    @property
    def faults(self) -> list[str]:
        """The checks that the row fails; an empty list is a pass."""
        found = [self.failure] if self.failure else []
        if not self.failure:
            found += [f"fp64 {self.fp64:.1e}"] * (not self.fp64 <= MOST_FP64)
            found += [f"fp32 {self.fp32:.1e}"] * (not self.is_exact_in_fp32)
            found += [f"order {self.order:.1e}"] * (not self.order >= LEAST_ORDER and self.plan != "slow")
            found += [f"D {self.depths}, not {-(-DEPTH // self.stride)}"] * (self.depths != -(-DEPTH // self.stride))
        return found


class Subject:
    """One architecture: its 2D net with random weights, and its output on two images."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.options = size_options(name, SMALL, {})
        torch.manual_seed(0)
        self.net = _enliven(self.build(features_only=False)).eval()
        steps = [-(-side // side_step(self.net)) * side_step(self.net) for side in SMALL]
        self.sizes = [SMALL, (steps[0], steps[1]), *trace_sizes(self.net, self.options.get("img_size"))]

    def build(self, *, features_only: bool) -> nn.Module:
        """Return the 2D net with freshly drawn weights."""
        flat = Inflation(plan=PRESETS["2d"])
        spec = NetSpec(self.name, flat, features_only=features_only, timm_kwargs=dict(self.options))
        if self.name.startswith("torchvision/"):
            return build_torchvision(spec, pretrained=False)
        return build_timm(spec, pretrained=False)

    def inflate(self, net: nn.Module, case: Case, attention: Any = "frame") -> Any:
        """Return an inflated copy of a 2D net."""
        value = Inflation.from_dict({"inflation": case.taps, "plan": case.plan, "attention": attention})
        return inflate_in_place(copy.deepcopy(net), value, trace_sizes=self.sizes, in_chans=3).eval()


def measure_all(name: str, cases: Sequence[Case] = CASES) -> Iterator[Row]:
    """Measure one net in every case; an exception is a failure of its row."""
    subject: Subject | None = None
    for case in cases:
        row = Row(name, case.taps, case.plan)
        try:
            subject = subject or Subject(name)
            row = _measure(subject, case, row)
            yield _in_full(subject, case, row) if case == FULL_CASE else row
        except Exception as error:  # the table is meant to list failures
            yield replace(row, failure=_line(error))


def _measure(subject: Subject, case: Case, row: Row) -> Row:
    net = subject.inflate(subject.net, case)
    images = torch.randn(1, 3, *net.trace_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fp32, _ = _static(subject.net, net, images)
        in_fp32 = _stages(subject.net, images, net)
    with torch.no_grad(), AllInDouble():
        net_2d, net = copy.deepcopy(subject.net).double(), _in_double(net, subject.net, case)
        fp64, deepest = _static(net_2d, net, images.double())
        fp32_2d = static_error([t.double() for t in tensors_of(in_fp32)], _stages(net_2d, images.double(), net))
        order = _order(net, DEPTH)
        if not order >= LEAST_ORDER:  # all frames fell into one tube or one mean, which has no order
            order = _order(net, 2 * net.depth_reduction + 1)
    return replace(row, fp64=fp64, fp32=fp32, fp32_2d=fp32_2d, order=order, depths=deepest, stride=net.depth_reduction)


class AllInDouble(TorchFunctionMode):
    """Casts to float64 where a net casts to float32 (timm's RmsNormFp32), which would round as in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        return func(*args, **(kwargs or {}))


def _in_double(net: Any, net_2d: nn.Module, case: Case) -> Any:
    """Return the net in float64, with kernels made again from the 2D ones: a third of a weight differs in float32."""
    kernels = dict(net_2d.named_parameters())
    net = net.double()
    for name, parameter in net.named_parameters():
        kernel = kernels[name].double()
        if parameter.ndim > kernel.ndim:
            kernel = kernel.view(*kernel.shape[:2], *(kernel.shape[2:] or (1, 1)))
            inflated = inflate_kernel(kernel, parameter.shape[2], taps=Taps(case.taps))
            parameter.copy_(inflated.view(parameter.shape))
    return net


def _order(net: Any, depth: int) -> float:
    """How much the output changes when frames are reordered, relative to the change for another clip."""
    clip, other = torch.randn(2, 1, 3, depth, *net.trace_size, dtype=torch.float64)
    places = torch.tensor([*range(1, depth, 2), *range(0, depth, 2)])
    answers = [torch.cat([t.flatten() for t in _answers(net, x)]) for x in (clip, clip[:, :, places], other)]
    return ((answers[1] - answers[0]).norm() / (answers[2] - answers[0]).norm()).item()


def _answers(net: Any, x: Tensor) -> list[Tensor]:
    return [t for t in tensors_of(net(x)) if t.is_floating_point()]


def _static(net_2d: Any, net: Any, images: Tensor) -> tuple[float, int]:
    """Return the static error of logits and features (where the net separates them), and D at the net's end."""
    clips = images.unsqueeze(2).expand(-1, -1, DEPTH, -1, -1)
    frames: list[int] = []
    hooks = [m.register_forward_hook(lambda _m, x, _y: frames.append(len(x[0]))) for m in _convolutions(net)]
    stages = _stages(net, clips, net)
    for hook in hooks:
        hook.remove()
    error = static_error(stages, _stages(net_2d, images, net))
    if not net.has_timm_methods:
        return error, frames[-1] // len(images)
    y = tensors_of(stages)[0]
    return error, y.shape[2] if y.ndim == 5 and not net.head_layout.is_nhwc else y.shape[1]


def _stages(net: Any, images: Tensor, inflated: Any) -> list[Any]:
    """Return features and logits where the net separates them, else its output."""
    if not inflated.has_timm_methods:
        return [net(images)]
    features = net.forward_features(images)
    return [features, net.forward_head(features)]


def _convolutions(net: nn.Module) -> Iterator[nn.Module]:
    return (m for m in net.modules() if isinstance(m, nn.Conv2d))


def _in_full(subject: Subject, case: Case, row: Row) -> Row:
    row = replace(row, levels=_levels(subject, case))
    net = subject.inflate(subject.net, case)
    clips = torch.randn(2, 3, DEPTH, *net.trace_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = tensors_of(net(clips))[0]
        return replace(
            row, compiles=_tried(_compiled, net, clips, expected), exports=_tried(_exported, net, clips, expected)
        )


def _levels(subject: Subject, case: Case) -> int:
    """Return the maps of features_only, each compared with the 2D net's; 0 where timm offers none."""
    try:
        net_2d = _enliven(subject.build(features_only=True)).eval()
    except (RuntimeError, AttributeError, InputError):  # timm's sign that it offers none
        return 0
    net: Any = subject.inflate(net_2d, case)
    net, net_2d = net.double(), net_2d.double()
    images = torch.randn(2, 3, *net.trace_size, dtype=torch.float64)
    with torch.no_grad(), AllInDouble():
        maps = net(images.unsqueeze(2).expand(-1, -1, DEPTH, -1, -1))
        error = static_error(maps, net_2d(images))
    if not error <= 1e-3:
        raise ValueError(f"features differ from the 2D net's by {error:.1e}")
    expected = [-(-DEPTH // d) for d, *_ in net.feature_info.reduction_dhw()]
    if [y.shape[2] for y in maps] != expected:
        raise ValueError(f"features have D = {[y.shape[2] for y in maps]}; reduction_dhw states {expected}")
    return len(maps)


def _tried(trial: Callable[[nn.Module, Tensor], Any], net: nn.Module, clips: Tensor, expected: Tensor) -> str:
    try:
        error = static_error(tensors_of(trial(copy.deepcopy(net), clips))[0], expected)
        return "yes" if error <= 1e-3 else f"differs by {error:.1e}"
    except Exception as error:
        return _line(error)


def _compiled(net: nn.Module, clips: Tensor) -> Any:
    torch.compiler.reset()
    return torch.compile(net, fullgraph=True, backend="eager")(clips)


def _exported(net: nn.Module, clips: Tensor) -> Any:
    return torch.export.export(net, (clips,), strict=False).module()(clips)


def _enliven(net: nn.Module) -> nn.Module:
    """Draw parameters that start at zero (heads, layer scales, last norms), so that every layer affects the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().amax() < 1e-3:
                fresh = (
                    torch.rand(parameter.shape, generator=generator)
                    if parameter.ndim < 2
                    else 0.05 * torch.randn(parameter.shape, generator=generator)
                )
                parameter.copy_(fresh)
    return net


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}"
