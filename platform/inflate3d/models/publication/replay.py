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
_MOST_NUMBERS = 2**26


def check_replay(net: nn.Module, folder: Path) -> float:
    """Run the stored input and return the largest difference from the stored features, relative to their largest.

    More than 1e-3, or not a number, warns with both values. InputError where the file does not hold the two tensors.
    """
    header = read_header(folder / REPLAY)
    if not {"input", "features"} <= set(header) or len(header["input"].shape) != 5:
        raise InputError(f"{folder / REPLAY}: expected `input` (B, C, D, H, W) and `features`; publish it again")
    if any(stored.numbers > _MOST_NUMBERS for stored in header.values()):
        raise InputError(f"{folder / REPLAY}: more than {_MOST_NUMBERS} numbers; refused")
    stored = read_tensors(folder / REPLAY, ("input", "features"))
    mode = net.training
    with torch.no_grad():
        features = replay_features(net.eval(), stored["input"])
    net.train(mode)
    error = difference(features, stored["features"])
    if not error <= TOLERANCE:
        warnings.warn(
            f"{folder}: replay differs by {error:.2g} of the largest value (allowed {TOLERANCE}): "
            f"got {features.flatten()[:3].tolist()}, stored {stored['features'].flatten()[:3].tolist()}",
            stacklevel=4,
        )
    return error


def replay_features(net: nn.Module, x_BCDHW: Tensor) -> Tensor:
    """Return what is replayed: the pooled features before the classifier, (B, num_features)."""
    return net.forward_head(net.forward_features(x_BCDHW), pre_logits=True)  # type: ignore[operator]


def difference(found: Tensor, stored: Tensor) -> float:
    """Return the largest difference, relative to the largest stored value; infinite for another shape."""
    if found.shape != stored.shape:
        return float("inf")
    return ((found - stored).abs().amax() / stored.abs().amax().clamp_min(1e-6)).item()
