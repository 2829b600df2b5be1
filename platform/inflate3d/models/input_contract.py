"""What input a net's weights expect, as plain values: axes, channels, spacing, orientation and intensity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inflate3d.contracts import Intensity


def contract_of_2d(net: nn.Module, in_chans: int) -> dict[str, Any]:
    """Return the contract of a net that nobody trained further: what its 2D net saw, RGB in 0..255 normalised.

    Without the 2D net's mean and standard deviation, intensity is None.
    """
    cfg: Mapping[str, Any] = getattr(net, "pretrained_cfg", None) or {}
    channels = ["red", "green", "blue"] if in_chans == 3 else [f"channel_{i}" for i in range(in_chans)]
    contract: dict[str, Any] = {"axes": "BCDHW", "channels": channels, "spacing_mm": None, "orientation": None}
    mean, std = cfg.get("mean"), cfg.get("std")
    if not mean or not std:
        return {**contract, "intensity": None}
    if in_chans != len(mean):  # the stem was adapted, so one grey value stands for all
        mean, std = [sum(mean) / len(mean)], [sum(std) / len(std)]
    window = [0.0, 255.0]
    return {**contract, "intensity": {"mode": "window", "window": window, "mean": list(mean), "std": list(std)}}


def intensity_of(contract: Mapping[str, Any]) -> Intensity | None:
    """Read a contract's intensity back, with the mean and std that its sample puts in place; None where it has none."""
    if contract.get("intensity") is None:
        return None
    sample = contract.get("sample") or {}
    placed = {k: sample[k] for k in ("mean", "std") if sample.get(k) is not None}
    placed = {k: v if isinstance(v, list | tuple) else [v] for k, v in placed.items()}
    stated = {**contract["intensity"], **placed}
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}
    return Intensity(**values)
