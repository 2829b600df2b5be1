"""The replay of a publication: a stored input must give the stored features."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models.publication.layout import REPLAY
from inflate3d.models.publication.tensor_file import read_header, read_tensors

TOLERANCE = 1e-3
_MOST_FRAMES, _MOST_PIXELS, _MOST_FEATURES = 1024, 2**24, 2**22
"""Of an input, B * D and B * D * H * W: what a forward takes is many times that."""


def check_replay(net: nn.Module, folder: Path) -> float:
    """Run the stored input and return the largest difference from the stored features, relative to their largest.

    More than 1e-3, or not a number, warns with both values. InputError where the file does not hold the two tensors,
    or an input that this net does not take, or one that is far larger than any that is published.
    """
    _check_shapes(net, folder / REPLAY)
    stored = read_tensors(folder / REPLAY, ("input", "features"))
    mode = net.training
    try:
        with torch.no_grad():
            features = replay_features(net.eval(), stored["input"])
    except (RuntimeError, AssertionError, TypeError) as fault:
        said = (str(fault).strip().splitlines() or [type(fault).__name__])[0][:160]
        shape = tuple(stored["input"].shape)
        raise InputError(
            f"{folder / REPLAY}: the net does not take its input {shape}: {said}; publish it again"
        ) from fault
    finally:
        net.train(mode)
    error = difference(features, stored["features"])
    if not error <= TOLERANCE:
        warnings.warn(
            f"{folder}: replay differs by {error:.2g} of the largest value (allowed {TOLERANCE}): "
            f"got {features.flatten()[:3].tolist()}, stored {stored['features'].flatten()[:3].tolist()}",
            stacklevel=4,
        )
    return error


def _check_shapes(net: nn.Module, file: Path) -> None:
    """Refuse by the header alone what no publication holds, before a forward takes its memory."""
    header = read_header(file)
    again = "publish it again"
    if set(header) != {"input", "features"} or len(header["input"].shape) != 5 or len(header["features"].shape) < 2:
        found = {name[:40]: stored.shape for name, stored in list(header.items())[:4]}
        raise InputError(f"{file}: expected `input` (B, C, D, H, W) and `features` (B, N), got {found}; {again}")
    if any(stored.dtype != "F32" for stored in header.values()):
        raise InputError(f"{file}: holds {sorted({s.dtype for s in header.values()})}; expected F32; {again}")
    batch, channels, depth, height, width = header["input"].shape
    frames = batch * depth
    if frames > _MOST_FRAMES or frames * height * width > _MOST_PIXELS or header["features"].numbers > _MOST_FEATURES:
        raise InputError(
            f"{file}: an input of {header['input'].shape} and features of {header['features'].shape}; at most "
            f"{_MOST_FRAMES} frames, {_MOST_PIXELS} pixels and {_MOST_FEATURES} features are replayed; {again}"
        )
    wanted = net.net_spec.in_chans  # type: ignore[union-attr]
    if channels != wanted or min(header["input"].shape) < 1:
        raise InputError(f"{file}: its input is {header['input'].shape}; the net takes {wanted} channels; {again}")


def replay_features(net: nn.Module, x_BCDHW: Tensor) -> Tensor:
    """Return what is replayed: the pooled features before the classifier, (B, num_features)."""
    return net.forward_head(net.forward_features(x_BCDHW), pre_logits=True)  # type: ignore[operator]


def difference(found: Tensor, stored: Tensor) -> float:
    """Return the largest difference, relative to the largest stored value; infinite for another shape."""
    if found.shape != stored.shape:
        return float("inf")
    return ((found - stored).abs().amax() / stored.abs().amax().clamp_min(1e-6)).item()
