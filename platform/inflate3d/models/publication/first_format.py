"""Publications of the first format, which knew three kinds of heads, read as those of today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inflate3d.contracts.card import from_first_format
from inflate3d.errors import InputError
from inflate3d.models.publication.layout import FORMAT

FIRST = "inflate3d-weights/1"


def read_first_format(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a config.json of the first format as one of today's. InputError where it is not what that format says."""
    try:
        found = {**config, "format": FORMAT, "input": _input(config["input"])}
        if "inputs" in config:
            found["inputs"] = {name: _input(spec) for name, spec in config["inputs"].items()}
        if "heads" in config:
            found["heads"] = {name: _head(name, entry) for name, entry in config["heads"].items()}
    except (AttributeError, LookupError, TypeError, ValueError) as fault:
        raise InputError(f"{where}: is no publication of format {FIRST!r}: {str(fault)[:160]}") from fault
    return found


def _input(spec: Mapping[str, Any]) -> dict[str, Any]:
    if "kind" not in spec:
        return dict(spec)
    rest = from_first_format(spec)
    del rest["targets"]
    return rest


def _head(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    if entry["type"] not in ("linear", "unet"):
        raise ValueError(f"heads.{name}: type is {str(entry['type'])[:60]!r}; expected linear or unet")
    rest = from_first_format({k: v for k, v in entry.items() if k not in ("channels", "input")})
    (target,) = rest.pop("targets").values()
    described: dict[str, Any] = {"num_classes": len(target["names"])}
    if entry["type"] == "unet":
        described["channels"] = entry.get("channels")
    placed = {"input": _input(entry["input"])} if "input" in entry else {}
    return {**rest, **placed, "dataset": name, "target": target, "head": described}
