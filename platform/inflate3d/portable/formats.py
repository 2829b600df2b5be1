"""Formats of portable files: how each is written, with which axes free, and how its file is run again."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from inflate3d.errors import InputError, unknown_name
from inflate3d.portable.bundle import NET, WEIGHTS, bundle_files
from inflate3d.portable.part import Part
from inflate3d.portable.whole_volume import WholeVolume

KEY = "inflate3d"
"""Where a file holds the facts, as JSON: a key of ONNX's metadata_props, else an extra file of this name."""
INPUT, OUTPUT = "clip", "answer"
MOST_CLIPS = MOST_STEPS = 4096
MOST_ONNX_BYTES = 2**31 - 2**20  # protobuf's limit, and room for the graph
Run = Callable[[Tensor], Tensor]


class PortableFormat(ABC):
    """One format. needs: packages beyond the light core. is_folder: whether it is a folder rather than a file."""

    needs: ClassVar[tuple[str, ...]] = ()
    is_folder: ClassVar[bool] = False

    @abstractmethod
    def write(self, part: Part, path: Path, *, free: Collection[str], facts: dict[str, Any]) -> None:
        """Write a part; the axes named in `free` ("batch", "depth") take other sizes later."""

    @abstractmethod
    def load(self, path: Path) -> Run:
        """Return a written file's answer to a clip (B, C, D, H, W), by the format's own runtime."""


class TorchExport(PortableFormat):
    """torch.export: `torch.export.load(file).module()(clip)`, in PyTorch of the same or a later version."""

    def write(self, part: Part, path: Path, *, free: Collection[str], facts: dict[str, Any]) -> None:
        """Depths are multiples of the part's step, two at the least."""
        with path.open("wb") as file:  # a path would have to end in .pt2
            torch.export.save(_program(part, free), file, extra_files={KEY: json.dumps(facts)})

    def load(self, path: Path) -> Run:
        """By torch.export."""
        with path.open("rb") as file:
            return torch.export.load(file).module()


class Onnx(PortableFormat):
    """ONNX with the input `clip` and the output `answer`; onnxruntime runs it without PyTorch."""

    needs = ("onnx", "onnxscript", "onnxruntime")

    def write(self, part: Part, path: Path, *, free: Collection[str], facts: dict[str, Any]) -> None:
        """As TorchExport's; in one file, so InputError past 2 GiB."""
        from onnx_ir.passes import common as passes

        size = sum(t.numel() * t.element_size() for t in [*part.net.parameters(), *part.net.buffers()])
        if size > MOST_ONNX_BYTES:
            raise InputError(f"the weights have {size / 2**30:.1f} GiB; a file of ONNX holds 2: --format torch-export")
        names: Any = dict(input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=_axes(part, free))
        # The exporter's optimiser takes ten times as long as all else, and onnxruntime optimises whatever it loads.
        words: Any = dict(verbose=False, optimize=False, custom_translation_table=_onnx_translations())
        written = torch.onnx.export(_program(part, free), **words, **names)
        assert written is not None
        passes.ClearMetadataAndDocStringPass()(written.model)  # of each node: where in Python it came from
        passes.CommonSubexpressionEliminationPass()(written.model)
        written.model.metadata_props[KEY] = json.dumps(facts)
        written.save(path, external_data=False)

    def load(self, path: Path) -> Run:
        """By onnxruntime on the CPU."""
        import onnxruntime

        def run(clip: Tensor) -> Tensor:
            try:
                return torch.from_numpy(session.run([OUTPUT], {INPUT: clip.numpy()})[0])
            except Exception as fault:  # of onnxruntime's own kinds, which derive from nothing else
                raise RuntimeError(f"onnxruntime: {fault}") from fault

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return run


class TorchScript(PortableFormat):
    """TorchScript by tracing: `torch.jit.load(file)(clip)`, also in C++. PyTorch calls it deprecated."""

    def write(self, part: Part, path: Path, *, free: Collection[str], facts: dict[str, Any]) -> None:
        """A trace says of no axis that it is free; that other sizes hold is found by running it."""
        traced = _traced(part)
        with path.open("wb") as file:  # a path would have to have a stem, which a hidden one has not
            torch.jit.save(traced, file, _extra_files={KEY: json.dumps(facts)})

    def load(self, path: Path) -> Run:
        """By torch.jit."""
        return torch.jit.load(path)


class MonaiBundle(PortableFormat):
    """A folder for MONAI's bundle commands: TorchScript that answers whole volumes, and configs around it."""

    is_folder = True

    def write(self, part: Part, path: Path, *, free: Collection[str], facts: dict[str, Any]) -> None:
        """H and W are as free as the depth: windows are inside. InputError for what is no segmenter."""
        files = bundle_files(part, facts)
        overlap = float(facts["window_overlap"])
        whole = WholeVolume(_traced(part), part.size, overlap=overlap, channels=part.channels).eval()
        for name, text in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text, encoding="utf-8")
        (path / NET).parent.mkdir()
        scripted = torch.jit.script(whole)
        torch.jit.save(scripted, path / NET, _extra_files={KEY: json.dumps(facts)})
        torch.save(scripted.state_dict(), path / WEIGHTS)  # which the specification demands

    def load(self, path: Path) -> Run:
        """By torch.jit, with the axes of MONAI turned to ours."""
        whole = torch.jit.load(path / NET)
        return lambda clip: whole(clip.transpose(2, 4)).transpose(2, 4)


FORMATS: dict[str, PortableFormat] = {
    "onnx": Onnx(),
    "torch-export": TorchExport(),
    "torchscript": TorchScript(),
    "monai-bundle": MonaiBundle(),
}


def format_named(name: str) -> PortableFormat:
    """Return a format. InputError for an unknown one, and for one whose packages are missing."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS, where="--format")
    if missing := [package for package in FORMATS[name].needs if find_spec(package) is None]:
        raise InputError(f"--format {name} needs {', '.join(missing)}: pip install 'inflate3d[export]'")
    return FORMATS[name]


def _onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return how operations are written where onnxscript 0.7 errs: the bias of a conv3d without one has two axes."""
    from onnxscript import opset18

    def conv3d(
        x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
    ) -> Any:
        strides, pads, dilations = ([v] * 3 if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
        inputs = (x, weight) if bias is None else (x, weight, bias)
        return opset18.Conv(*inputs, strides=strides, pads=[*pads, *pads], dilations=dilations, group=groups)

    return {torch.ops.aten.conv3d.default: conv3d}


def _example(part: Part) -> Tensor:
    return torch.zeros(2, part.channels, *part.size)  # of two clips, since tracers take 1 for a constant


def _traced(part: Part) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated, and of each size that a trace fixes
        return torch.jit.trace(part.net, _example(part), check_trace=False)


def _axes(part: Part, free: Collection[str]) -> Any:
    axes: dict[int, Any] = {}
    if "batch" in free:
        axes[0] = torch.export.Dim("batch", min=1, max=MOST_CLIPS)
    if "depth" in free:
        assert part.depth_step is not None
        steps = torch.export.Dim("depth", min=2, max=MOST_STEPS)
        axes[2] = steps if part.depth_step == 1 else part.depth_step * steps
    return (axes,)


def _program(part: Part, free: Collection[str]) -> Any:
    return torch.export.export(part.net, (_example(part),), dynamic_shapes=_axes(part, free), strict=False)
