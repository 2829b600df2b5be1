"""Published weights on disk: a directory without pickle, read with its hashes, its contract and its replay checked.

config.json (format, net, input contract, data, versions), model.safetensors (timm's keys; other domains' statistics and
stems as extra tensors), replay.safetensors (an input and its pooled features), README.md, SHA256SUMS.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import resolve_plan
from inflate3d.models.layout import CONFIG, FORMAT, NORM_KEY, PREFIX, REPLAY, STEM_KEY, SUMS, WEIGHTS
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.nn.stems import adapt_channels, first_conv_path

REPLAY_TOLERANCE = 1e-3


def published_folder(name: str, cache_dir: str | None = None) -> Path | None:
    """Return the folder that a name such as "local-dir:path" means, or None for other names."""
    if not name.startswith(PREFIX):
        return None
    folder = Path(name.removeprefix(PREFIX)).expanduser()
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{name!r}: {folder} holds no {CONFIG}; expected a published directory. "
            f"Make one: platform publish RUN --output {PREFIX}{folder}"
        )
    return folder


def load_published(
    folder: Path,
    *,
    build: Callable[[NetSpec], nn.Module],
    pretrained: bool,
    norm_domain: str | None,
    plan: Any,
    **options: Any,
) -> nn.Module:
    """Build the net of a published directory and load its weights.

    plan "auto" keeps the net's own; another one must have the same kernels (strides may differ). Another in_chans
    adapts the stem as timm does; another num_classes brings a fresh classifier. InputError where a file has changed.
    """
    config = read_config(folder)
    own = NetSpec.from_dict(config["net"])
    if not pretrained:
        warnings.warn(f"{folder}: pretrained=False, so the weights are random; pass pretrained=True", stacklevel=3)
    spec = _adapted(own, plan, options)
    net = build(spec)
    if config["norm"] == "group":
        convert_norms(net, "group", Domain())
    net.input_spec, net.published = config["input"], config  # type: ignore[assignment]
    if not pretrained:
        return net
    check_sums(folder)
    state = domain_state(load_tensors(folder / WEIGHTS), config, norm_domain, first_conv_path(net))
    if spec.in_chans != own.in_chans and norm_domain is None:
        key = f"{first_conv_path(net)}.weight"
        state[key] = adapt_channels(state[key], spec.in_chans)
    _load(net, state, fresh_classifier=spec.num_classes != own.num_classes, folder=folder)
    if spec == own and norm_domain is None:
        check_replay(net, folder)
    return net


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check config.json. Raises InputError for another format or a missing entry."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / CONFIG} is unreadable ({error}); publish or download it again") from error
    written = config.get("format") if isinstance(config, dict) else None
    if written != FORMAT:
        raise InputError(
            f"{folder / CONFIG}: format is {written!r}; this version reads {FORMAT!r}. "
            "If it is newer, upgrade: pip install -U inflate3d"
        )
    for key in ("net", "norm", "norm_domains", "input"):
        if key not in config:
            raise InputError(f"{folder / CONFIG}: {key!r} is missing; publish or download it again")
    return config


def check_sums(folder: Path) -> None:
    """Compare every file with SHA256SUMS. Raises InputError that names the first that differs."""
    sums = folder / SUMS
    if not sums.is_file():
        raise InputError(f"{sums} is missing; publish or download the directory again")
    for line in sums.read_text(encoding="utf-8").splitlines():
        expected, _, name = line.partition("  ")
        if not name or "/" in name or "\\" in name or name.startswith("."):
            raise InputError(f"{sums}: {line!r} does not name a file of the directory")
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file} is missing; publish or download the directory again")
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise InputError(
                f"{file} has changed: sha256 {found[:16]}..., {SUMS} says {expected[:16]}... "
                "Publish or download the directory again"
            )


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file; InputError if it is not one."""
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is not a safetensors file ({error}); publish or download it again") from error


def domain_state(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], norm_domain: str | None, stem_path: str
) -> dict[str, Tensor]:
    """Return the tensors under timm's keys, with the statistics and the stem of one domain put in."""
    state = {k: v for k, v in tensors.items() if not k.startswith((NORM_KEY, STEM_KEY))}
    if norm_domain is None:
        return state
    domains = config["norm_domains"]
    if norm_domain not in domains:
        raise unknown_name("norm_domain", norm_domain, domains)
    for prefix, path in ((f"{NORM_KEY}{norm_domain}.", ""), (f"{STEM_KEY}{domains[norm_domain]}.", f"{stem_path}.")):
        state.update({path + k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return state


def check_replay(net: nn.Module, folder: Path) -> None:
    """Run the stored input and compare with the stored features; a difference past 1e-3 warns with both values."""
    stored = load_tensors(folder / REPLAY)
    mode = net.training
    with torch.no_grad():
        features = replay_features(net.eval(), stored["input"])
    net.train(mode)
    scale = stored["features"].abs().amax().clamp_min(1e-6)
    error = ((features - stored["features"]).abs().amax() / scale).item()
    if not error <= REPLAY_TOLERANCE:
        warnings.warn(
            f"{folder}: replay differs by {error:.2g} of the largest value (allowed {REPLAY_TOLERANCE}): "
            f"got {features.flatten()[:3].tolist()}, stored {stored['features'].flatten()[:3].tolist()}",
            stacklevel=4,
        )


def replay_features(net: nn.Module, x_BCDHW: Tensor) -> Tensor:
    """Return what is replayed: the pooled features before the classifier, (B, num_features)."""
    return net.forward_head(net.forward_features(x_BCDHW), pre_logits=True)  # type: ignore[operator]


def _adapted(own: NetSpec, plan: Any, options: Mapping[str, Any]) -> NetSpec:
    changes = {
        k: v for k, v in options.items() if v is not None and k not in ("timm_kwargs", "in_chans", "num_classes")
    }
    if options.get("in_chans") is not None:
        changes["in_chans"] = options["in_chans"]
    if options.get("num_classes") is not None:
        changes["num_classes"] = options["num_classes"]
    if plan != "auto":
        changes["plan"] = resolve_plan(plan)
    return replace(own, timm_kwargs={**own.timm_kwargs, **options.get("timm_kwargs", {})}, **changes)


def _load(net: nn.Module, state: dict[str, Tensor], *, fresh_classifier: bool, folder: Path) -> None:
    """Load strictly; only a fresh classifier, and what features_only leaves out, may differ."""
    own = net.state_dict()
    found = {key: _lookup(state, key) for key in own}
    missing = [k for k, v in found.items() if v is None]
    classifier = _classifier_prefix(net) if fresh_classifier else None
    if classifier is not None:
        missing = [k for k in missing if not k.startswith(classifier)]
    if missing:
        raise InputError(f"{folder / WEIGHTS}: no tensor for {missing[:3]} ({len(missing)} in all); publish it again")
    for key, value in found.items():
        if value is not None and value.shape != own[key].shape:
            raise InputError(
                f"{folder / WEIGHTS}: {key} has shape {tuple(value.shape)}, the net wants {tuple(own[key].shape)}. "
                "Kernels are stored as they were trained: leave plan and the net's own options as published"
            )
    net.load_state_dict({k: v for k, v in found.items() if v is not None}, strict=False)


def _lookup(state: Mapping[str, Tensor], key: str) -> Tensor | None:
    """Find a tensor under the full net's key; timm's feature nets put a prefix before it or flatten `a.0` to `a_0`."""
    candidates = [key, key.partition(".")[2]]
    head, _, tail = key.partition(".")
    if "_" in head:
        candidates.append(f"{head.replace('_', '.', 1)}.{tail}")
        candidates.append(f"{'.'.join(head.rsplit('_', 1))}.{tail}")
    return next((state[c] for c in candidates if c in state), None)


def _classifier_prefix(net: nn.Module) -> str | None:
    classifier = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]
    return next((f"{n}." for n, m in net.named_modules() if m is classifier), None)
