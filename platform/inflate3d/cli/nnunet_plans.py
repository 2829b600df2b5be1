"""What nnU-Net planned for a dataset, read from nnUNetPlans.json: one 3D configuration in the axes of this package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inflate3d.data.raw.files import read_json
from inflate3d.errors import InputError, unknown_name
from inflate3d.sample import Spacing, Triple

CT, ZSCORE, RGB = "CTNormalization", "ZScoreNormalization", "RGBTo01Normalization"
_NEEDED = ("patch_size", "spacing", "batch_size", "normalization_schemes")


@dataclass(frozen=True)
class Planned:
    """One configuration. Sizes and spacings are (z, y, x) of the files: nnU-Net's transposition is undone.

    schemes: the normalisation of each channel. window: 0.5 and 99.5 percentiles of the foreground over all CT channels.
    network: the class that nnU-Net builds, without its package.
    """

    dataset: str
    configuration: str
    patch_size: Triple
    spacing_mm: Spacing
    batch_size: int
    schemes: tuple[str, ...]
    uses_mask: bool
    batch_dice: bool
    window: tuple[float, float] | None
    network: str


def read_plans(path: Path, configuration: str) -> Planned:
    """Return one configuration of a nnUNetPlans.json (nnU-Net v2), with what it inherits.

    Source: nnunetv2/utilities/plans_handling/plans_handler.py. InputError for another file, an unknown configuration,
    one of 2D, and one that takes the masks of another as input.
    """
    plans = read_json(path, where="plans")
    configurations = plans.get("configurations")
    if not isinstance(configurations, dict) or "dataset_name" not in plans:
        raise InputError(f"{path}: no nnUNetPlans.json of nnU-Net v2; expected dataset_name and configurations")
    found = _inherited(configurations, configuration, str(path))
    where = f"{path}: configuration {configuration}"
    if missing := [key for key in _NEEDED if key not in found]:
        raise InputError(f"{where}: {missing[0]} is missing; was it written by nnUNetv2_plan_experiment?")
    if found.get("previous_stage"):
        raise InputError(
            f"{where} takes the masks of {found['previous_stage']} as input, which has no counterpart; take another: "
            f"{', '.join(name for name in configurations if name != configuration)}"
        )
    backward = [int(axis) for axis in plans.get("transpose_backward", (0, 1, 2))]
    depth, height, width = (int(n) for n in _turned(found["patch_size"], backward, f"{where}: patch_size"))
    z, y, x = (float(s) for s in _turned(found["spacing"], backward, f"{where}: spacing"))
    schemes = tuple(str(scheme) for scheme in found["normalization_schemes"])
    return Planned(
        dataset=str(plans["dataset_name"]),
        configuration=configuration,
        patch_size=(depth, height, width),
        spacing_mm=(z, y, x),
        batch_size=int(found["batch_size"]),
        schemes=schemes,
        uses_mask=any(found.get("use_mask_for_norm", ())),
        batch_dice=bool(found.get("batch_dice", True)),
        window=_window(plans, schemes, where),
        network=_network(found),
    )


def _inherited(configurations: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return a configuration over those that it inherits from."""
    chain: list[str] = []
    parent: str | None = name
    while parent is not None:
        if parent not in configurations:
            raise unknown_name("configuration", parent, configurations, where=where)
        if parent in chain:
            raise InputError(f"{where}: configuration {name} inherits from itself: {' -> '.join([*chain, parent])}")
        chain.append(parent)
        parent = configurations[parent].get("inherits_from")
    found: dict[str, Any] = {}
    for one in reversed(chain):
        found |= configurations[one]
    return found


def _turned(values: Any, backward: list[int], where: str) -> list[Any]:
    if not isinstance(values, list) or len(values) != 3:
        raise InputError(f"{where} is {values!r}; expected three numbers: a 3D configuration, such as 3d_fullres")
    return [values[axis] for axis in backward]


def _window(plans: Mapping[str, Any], schemes: tuple[str, ...], where: str) -> tuple[float, float] | None:
    """Return what nnU-Net clips CT to; None where no channel is CT. InputError where the plans do not state it."""
    measured = plans.get("foreground_intensity_properties_per_channel", {})
    rows = [measured.get(str(channel), {}) for channel, scheme in enumerate(schemes) if scheme == CT]
    if not rows:
        return None
    try:
        return min(float(r["percentile_00_5"]) for r in rows), max(float(r["percentile_99_5"]) for r in rows)
    except KeyError as fault:
        raise InputError(
            f"{where}: {CT}, but foreground_intensity_properties_per_channel does not state {fault}"
        ) from None


def _network(configuration: Mapping[str, Any]) -> str:
    architecture = configuration.get("architecture") or {}
    named = architecture.get("network_class_name") or configuration.get("UNet_class_name") or "its own network"
    return str(named).rpartition(".")[2]
