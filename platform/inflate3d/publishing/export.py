"""publish: an inflated net, or a run's backbone, becomes a directory that anyone can load."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models.layout import CARD, CONFIG, FORMAT, PRIVATE, REPLAY, SUMS, WEIGHTS
from inflate3d.models.replay import replay_features
from inflate3d.publishing.card import render_card
from inflate3d.publishing.destination import destination_folder, is_publication
from inflate3d.publishing.licences import may_be_published


def publish(
    model: nn.Module,
    destination: str,
    *,
    input_spec: Mapping[str, Any] | None = None,
    norm: str = "shared",
    norm_domains: Mapping[str, str] | None = None,
    extra_tensors: Mapping[str, Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Write a net made by create_model to "local-dir:path" and return the folder.

    input_spec: the contract that the weights expect (axes, channels, spacing_mm, orientation, intensity). norm_domains:
    each domain and its stem; extra_tensors: their statistics and stems. training: what the card says of the training
    (data, metrics, steps). The same content is left as it is; an older publication is replaced; a folder that holds
    anything else is refused. Weights from data whose card forbids it are marked private.
    """
    folder = destination_folder(destination)
    spec = getattr(model, "net_spec", None)
    if spec is None:
        raise InputError(f"{type(model).__name__} was not made by create_model; build it there, then publish it")
    if spec.features_only:
        raise InputError("features_only nets lack their last layers; publish the full net")
    facts = dict(training or {})
    is_private = not may_be_published(facts.get("data", []))
    config = {
        "format": FORMAT,
        "architecture": f"inflate3d/{spec.name}",
        "net": spec.to_dict(),
        "norm": norm,
        "norm_domains": dict(norm_domains or {}),
        "input": dict(input_spec or default_input(spec.in_chans)),
        "private": is_private,
        "source_weights": _source_weights(model),
        "training": facts,
        "versions": {name: version(name) for name in ("inflate3d", "torch", "timm")},
    }
    staging = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        _write(staging, model, config, extra_tensors or {})
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    if is_private:
        warnings.warn(f"{folder} is marked private: a dataset's card forbids publishing weights", stacklevel=2)
    return folder


def default_input(in_chans: int) -> dict[str, Any]:
    """Return the contract of a net that nobody trained further: ImageNet's channels, values as its 2D net had them."""
    channels = ["red", "green", "blue"] if in_chans == 3 else [f"channel_{i}" for i in range(in_chans)]
    return {"axes": "BCDHW", "channels": channels, "spacing_mm": None, "orientation": None, "intensity": None}


def _write(folder: Path, model: nn.Module, config: Mapping[str, Any], extra_tensors: Mapping[str, Tensor]) -> None:
    tensors = {**model.state_dict(), **extra_tensors}
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    save_file(_replay(model), folder / REPLAY)
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    (folder / CARD).write_text(render_card(config, parameters=parameters), encoding="utf-8")
    if config["private"]:
        (folder / PRIVATE).write_text("Trained on data whose card forbids publishing weights.\n", encoding="utf-8")
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for the owner alone
    lines = [f"{_sha256(file)}  {file.name}" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _replay(model: Any) -> dict[str, Tensor]:
    plan, spec = model.plan, model.net_spec
    height, width = model.trace_size  # the smallest that the net was seen to take
    depth = max(8, plan.min_depth)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, spec.in_chans, depth, height, width, generator=generator)
    mode = model.training
    with torch.no_grad():
        features = replay_features(model.cpu().eval(), x)
    model.train(mode)
    return {"input": x, "features": features.contiguous()}


def _source_weights(model: nn.Module) -> dict[str, Any] | None:
    spec, cfg = model.net_spec, getattr(model, "pretrained_cfg", None) or {}
    if not getattr(model, "is_from_2d_weights", False):
        return None
    return {"name": spec.name, "licence": cfg.get("license"), "origin": cfg.get("origin_url") or cfg.get("hf_hub_id")}  # type: ignore[union-attr]


def _put_in_place(staging: Path, folder: Path) -> None:
    """Rename the whole directory; an equal publication is left untouched."""
    if is_publication(folder):
        if (folder / SUMS).is_file() and (folder / SUMS).read_bytes() == (staging / SUMS).read_bytes():
            return
        old = folder.with_name(f".old-{folder.name}")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        staging.rename(folder)
        shutil.rmtree(old)
        return
    if folder.is_dir():
        folder.rmdir()
    staging.rename(folder)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
