"""What the labels of mask files become: renamed, merged, left out, or gathered from several files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.data.raw.noticed import Noticed
from inflate3d.errors import InputError, unknown_name
from inflate3d.targets import MaskTarget

if TYPE_CHECKING:
    from inflate3d.data.raw.readers import Volume

BACKGROUND = "background"
_MOST_CLASSES = 256


@dataclass(frozen=True)
class MaskFile:
    """One file of a mask. index_of: the class that each value of the file becomes; 0 is the background."""

    path: Path
    index_of: Mapping[int, int]


@dataclass(frozen=True)
class LabelMap:
    """target: the mask that a card states. index_of: the label of it that each value of a file becomes."""

    target: MaskTarget
    index_of: Mapping[int, int]


def label_map(values: Mapping[str, int], wanted: Mapping[str, Any] | None, *, where: str) -> LabelMap:
    """Return the map from a file's values to classes.

    values: the value of each label in the files, by its name; 0 is the background. wanted: a class and the labels that
    it is made of, one or a list, by name or value: {liver: 1, kidney: [2, left kidney]}; labels that no class takes
    become background. A class with an empty list was not looked for here (MaskTarget.annotated), so that sets of
    unlike labels share a list of classes: {liver: 1, kidney: []} hides the kidney, {liver: 1, background: [0, kidney]}
    makes it background. None: every label is a class. InputError names what does not exist or is taken twice.
    """
    known = {BACKGROUND: 0, **values}
    if wanted is None:
        wanted = {name: [name] for name in values}
    classes = [BACKGROUND, *(name for name in wanted if name != BACKGROUND)]
    if not any(_listed(wanted[name]) for name in classes[1:]) or len(classes) > _MOST_CLASSES:
        raise InputError(
            f"{where}: labels {dict(wanted)} must name 1 to {_MOST_CLASSES - 1} classes beside the background, and "
            "labels for one of them at least"
        )
    index_of = dict.fromkeys(known.values(), 0)
    taken: dict[int, str] = {}
    for index, name in enumerate(classes):
        for label in _listed(wanted.get(name, ())):
            value = _value(label, known, where)
            if (other := taken.setdefault(value, name)) != name:
                raise InputError(f"{where}: labels gives {label!r} to {other!r} and to {name!r}; a label has one class")
            index_of[value] = index
    if taken.get(0, BACKGROUND) != BACKGROUND:
        raise InputError(f"{where}: labels gives the background to {taken[0]!r}; it cannot be of another class")
    unlooked = [name for name in classes[1:] if not _listed(wanted[name])]
    for name in unlooked:
        if (taker := taken.get(known.get(name, -1))) is not None:
            raise InputError(
                f"{where}: labels gives {name!r} to {taker!r}, and an empty list says that it was not looked for; keep "
                "one of the two"
            )
    annotated = tuple(name for name in classes if name not in unlooked) if unlooked else ()
    return LabelMap(MaskTarget(tuple(classes), annotated), index_of)


def chosen(stated: MaskTarget, wanted: Mapping[str, Any] | None, *, where: str) -> LabelMap:
    """Return the map of a mask whose values are the indices of `stated.names`: as it is, or with the classes wanted.

    Wanted classes take the place of regions; what is ignored stays so unless a class takes it.
    """
    if wanted is None:
        return LabelMap(stated, {i: i for i in range(len(stated.names))})
    values = {name: i for i, name in enumerate(stated.names) if i}
    taken = [label for labels in wanted.values() for label in _listed(labels)]
    ignored = [name for name in stated.ignored if name not in taken and values[name] not in taken]
    made = label_map(values, {**wanted, **{name: [name] for name in ignored}}, where=where)
    annotated = tuple(name for name in made.target.annotated if name not in ignored)
    return replace(made, target=replace(made.target, annotated=annotated, ignored=tuple(ignored)))


def merged(files: Sequence[MaskFile], read: Callable[[Path], Volume], where: str) -> Volume:
    """Return one mask of several files; of two that claim a voxel the later counts, which is noticed.

    read: gives a file as a mask on the image's grid. InputError for a value that has no class.
    """
    volume: Volume | None = None
    overlap = 0
    for file in files:
        found = read(file.path)
        labels = _mapped(found.array, file, where)
        if volume is None:
            volume = replace(found, array=labels)
            continue
        inside = labels > 0
        overlap += int(np.count_nonzero(volume.array[inside]))
        np.copyto(volume.array, labels, where=inside)
        volume = replace(volume, noticed=(*volume.noticed, *found.noticed))
    assert volume is not None, "a mask has a file"
    if not overlap:
        return volume
    text = f"{overlap} voxels are in two mask files; the later file counts"
    return replace(volume, noticed=(*volume.noticed, Noticed("masks overlap", text)))


def _mapped(array: np.ndarray, file: MaskFile, where: str) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    known = np.zeros(256, bool)
    for value, index in file.index_of.items():
        table[value], known[value] = index, True
    if strange := [v for v in np.unique(array).tolist() if not known[v]]:
        raise InputError(
            f"{where}: {file.path.name} holds labels {strange[:8]}; allowed: {sorted(file.index_of)}. Is it of another "
            "release, or damaged?"
        )
    return table[array]


def _listed(labels: Any) -> list[Any]:
    return list(labels) if isinstance(labels, list | tuple) else [labels]


def _value(label: Any, known: Mapping[str, int], where: str) -> int:
    """Return the value of a label given by its name or its value. InputError with close names for no such label."""
    if isinstance(label, str) and label in known:
        return known[label]
    if isinstance(label, int) and not isinstance(label, bool) and label in known.values():
        return label
    if isinstance(label, int):
        listed = ", ".join(f"{value} {name}" for name, value in known.items())[:400]
        raise InputError(f"{where}: labels names {label!r}, which is no label of this set; its labels: {listed}")
    raise unknown_name("label", str(label), known, where=where)
