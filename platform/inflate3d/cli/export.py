"""`platform export MODEL --format F --output PATH`: a net as what runs without this package."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from inflate3d.cli.plan_arguments import triple

_TEXT = "write a model's answer, or its features, for onnxruntime, torch.export or TorchScript, or as a MONAI bundle"
_EPILOG = """\
MODEL     a run folder; published weights: local-dir:PATH (or the folder), hf-hub:ORG/NAME, https://HOST/DIR,
          s3://BUCKET/DIR, a name from inflate3d.list_pretrained(); or a 2D net's name, with its weights
The file takes normalised clips (B, C, D, H, W) and gives what `platform predict` says of a window: probabilities,
masks, values, or pooled features. It holds the input contract, the names of the classes and the window as JSON.
It appears once it has answered random clips as the net does, within 1e-4. docs/publishing.md runs one in 15 lines.
monai-bundle is a folder, of segmenters alone: volumes of any size go in, and python -m monai.bundle run writes masks.
"""


def add_parser(subparsers: Any) -> None:
    """Add `platform export`."""
    parser = subparsers.add_parser(
        "export", help=_TEXT, description=_TEXT, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="a run, published weights or a 2D net; see below")
    parser.add_argument(
        "--format", required=True, metavar="FORMAT", help="onnx, torch-export, torchscript or monai-bundle"
    )
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="the file or the bundle's folder; one that is there is replaced"
    )
    parser.add_argument("--dataset", metavar="NAME", help="the dataset whose head answers (default: the only one)")
    parser.add_argument("--features", action="store_true", help="pooled features instead of the head's answer")
    parser.add_argument("--input_size", metavar="D,H,W", help="default: what the weights were trained on")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="for a run folder (default: best)")
    parser.add_argument("--cache-dir", metavar="DIR", help="where downloads are kept (default: INFLATE3D_CACHE)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.errors import InputError
    from inflate3d.models.publication.layout import CONFIG

    size = triple(args.input_size, int, "--input_size")
    folder = Path(args.model)
    is_run = folder.is_dir() and not (folder / CONFIG).is_file()
    if args.checkpoint and not is_run:
        raise InputError(f"--checkpoint is for a run folder; {args.model!r} is none")
    if not is_run:
        return _write(args, f"local-dir:{folder}" if folder.is_dir() else args.model, size)
    from tempfile import TemporaryDirectory

    from inflate3d.portable.formats import format_named
    from inflate3d.publishing.from_run import publish_run

    format_named(args.format)  # refuse before the run is read
    with TemporaryDirectory() as scratch:
        published = f"local-dir:{scratch}/published"
        publish_run(folder, published, which=args.checkpoint or "best", with_heads=True)
        return _write(args, published, size, title=args.model)


def _write(args: argparse.Namespace, model: str, size: Any, title: str | None = None) -> None:
    from dataclasses import replace

    from inflate3d.portable.formats import format_named
    from inflate3d.portable.part import part_of
    from inflate3d.portable.write import write_portable

    format_named(args.format)
    part = part_of(model, dataset=args.dataset, features=args.features, size=size, cache_dir=args.cache_dir)
    part = replace(part, facts={**part.facts, "model": title or args.model})
    written = write_portable(part, args.output, format=args.format)
    shape = ", ".join(map(str, written.facts["shape"]))
    held = [file for file in (written.path, *written.path.rglob("*")) if file.is_file()]
    print(f"written: {written.path} ({sum(f.stat().st_size for f in held) / 1e6:.1f} MB), {part.facts['gives']}")
    print(f"input ({shape}); largest difference from the net on random clips: {written.difference:.1e}")
    if written.path.is_dir():
        print(f"it answers volumes of any size; how MONAI runs it: {written.path / 'docs' / 'README.md'}")
    elif "depth" not in written.free:
        print(_why_fixed(part))


def _why_fixed(part: Any) -> str:
    depth, step = part.size[0], part.depth_step
    if step is None:
        return f"depth is fixed at {depth}: larger samples go through in windows, as in validation"
    if depth % step or depth < 2 * step:
        return f"depth is fixed at {depth}: free depths are multiples of {step}, made with --input_size {2 * step},H,W"
    return f"depth is fixed at {depth}: this net's forward, as the format records it, holds for that depth alone"
