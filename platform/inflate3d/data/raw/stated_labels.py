"""What the labels of a dataset.json mean, as nnU-Net and the Medical Segmentation Decathlon write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inflate3d.errors import InputError
from inflate3d.targets import MaskTarget

_IGNORE = "ignore"


def stated_labels(table: Mapping[str, Any], order: Sequence[int] | None = None, *, where: str) -> MaskTarget:
    """Return the target of {"0": "background"} (index -> name), or {"background": 0} (name -> index).

    Source: nnU-Net's documentation/region_based_training.md and ignore_label.md. An entry of several labels, {"whole
    tumor": [1, 2, 3]}, makes every entry but the background a region; `order` is regions_class_order, the label that is
    written for each. A label of no entry of its own is called "label 2". "ignore" is left out of everything. InputError
    names the entry that is wrong, gaps between the labels, and an order that is missing or does not fit.
    """
    entries: dict[str, list[int]] = {}
    for key, value in table.items():
        index, name = (key, value) if not isinstance(value, int | list) and str(key).isdigit() else (value, key)
        entries[str(name)] = [_index(i, str(name), where) for i in (index if isinstance(index, list) else [index])]
    if wrong := next((n for n in entries if n != _IGNORE and n.lower() == _IGNORE), None):
        raise InputError(f"{where}: label {wrong!r}: nnU-Net's is 'ignore', in small letters; write it so")
    names = _names(entries, table, where)
    regions = _regions(entries, names, order, where) if any(len(labels) > 1 for labels in entries.values()) else ()
    try:
        return MaskTarget(names, ignored=(_IGNORE,) if _IGNORE in entries else (), regions=regions)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from fault


def _regions(entries: Mapping[str, Sequence[int]], names: Sequence[str], order: Any, where: str) -> Any:
    """Return each entry but the background as a region of named labels."""
    regions = {name: labels for name, labels in entries.items() if name != _IGNORE and labels != [0]}
    if not isinstance(order, list) or len(order) != len(regions) or not all(type(label) is int for label in order):
        raise InputError(
            f"{where}: regions_class_order is {order!r}; expected the label that is written for each of the "
            f"{len(regions)} regions {', '.join(regions)}, such as [1, 2, 3]"
        )
    if odd := [name for (name, labels), label in zip(regions.items(), order, strict=True) if label not in labels]:
        raise InputError(f"{where}: regions_class_order {order}: what is written for {odd[0]!r} is no label of it")
    return [
        {"name": name, "labels": [names[i] for i in labels], "written": names[label]}
        for (name, labels), label in zip(regions.items(), order, strict=True)
    ]


def _names(entries: Mapping[str, Sequence[int]], table: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the name of each label: that of the entry of it alone. InputError for gaps, and for two such entries."""
    own: dict[int, str] = {}
    for name, labels in entries.items():
        if len(labels) == 1 and own.setdefault(labels[0], name) != name:
            raise InputError(f"{where}: label {labels[0]} is {own[labels[0]]!r} and {name!r}; a label has one name")
    used = sorted({label for labels in entries.values() for label in labels})
    if len(used) < 2 or used != list(range(len(used))) or len(entries) != len(table):
        raise InputError(
            f"{where}: labels {dict(table)} must be numbered 0, 1, 2, ... without gaps, with at least two classes"
        )
    return tuple(own.get(label, f"label {label}") for label in used)


def _index(index: Any, name: str, where: str) -> int:
    if isinstance(index, bool) or not str(index).isdigit():
        raise InputError(f"{where}: label {name!r} has index {index!r}; expected an integer from 0")
    return int(index)
