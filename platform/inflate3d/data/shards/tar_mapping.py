"""What the members of tars that exist already mean: the YAML of `platform shards index`, checked key by key."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from inflate3d.contracts import SPLITS, DatasetCard, InputSpec, Intensity, medium_of
from inflate3d.contracts.card import from_first_format
from inflate3d.data.raw.keys import case_keys
from inflate3d.data.shards.members import byte_members
from inflate3d.discover import plug_ins
from inflate3d.errors import InputError, unknown_name

_RECORD_FORMAT = 3
"""Of what an index says of a sample: indexes of another are made anew, and can be read until then."""
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_CARD_DEFAULTS: dict[str, Any] = {
    "url": "",
    "licence": "unknown",
    "commercial_use": None,
    "weights_may_be_published": False,
    "citation": "",
}


@dataclass(frozen=True)
class TarMapping:
    """card: of the whole. splits: patterns of file names. members: by meaning, "SUFFIX" or "SUFFIX:FIELD.SUBFIELD"."""

    card: DatasetCard
    members: dict[str, str]
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    prefix_keys: bool = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: str = "mapping") -> TarMapping:
        """Read one from plain values; InputError begins with `where` and names the key, and what is allowed.

        What to_dict returns is read back to the same.
        """
        _check_keys(data, [f.name for f in fields(cls)], where)
        card = _card(_section(data, "card", where), f"{where}: card")
        members = _members(_section(data, "members", where), card, f"{where}: members")
        splits = _splits(data.get("splits") or {}, f"{where}: splits")
        if not isinstance(prefix := data.get("prefix_keys", False), bool):
            raise InputError(f"{where}: prefix_keys is {prefix!r}; allowed: true, false")
        return cls(card, members, splits, prefix)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping as plain JSON values."""
        plain = {"card": self.card.to_dict(), **{f.name: getattr(self, f.name) for f in fields(self)[1:]}}
        return json.loads(json.dumps(plain))

    @property
    def digest(self) -> str:
        """16 hex digits of all that an index depends on beside the tar itself."""
        content = {**self.to_dict(), "splits": None, "format": _RECORD_FORMAT}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def split(self, file: str) -> str:
        """Return the split of a tar by its file name. Raises InputError if no pattern takes it, or two splits do."""
        if not self.splits:
            return "train"
        found = [s for s, patterns in self.splits.items() if any(fnmatch.fnmatchcase(file, p) for p in patterns)]
        if len(found) != 1:
            said = f"is in {' and '.join(found)}" if found else "is in no split"
            shown = "; ".join(f"{split}: {', '.join(p)}" for split, p in self.splits.items())
            raise InputError(f"splits: {file} {said}; each tar belongs to one ({shown})")
        return found[0]

    def keys(self, file: str, names: Sequence[str]) -> list[str]:
        """Return the key of each sample of a tar, by the rule of `case_keys`."""
        prefix = f"{file.rpartition('.')[0]}_" if self.prefix_keys else ""
        return case_keys([f"{prefix}{name.removeprefix('./')}" for name in names], where=file)


def _section(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    value = data.get(name)
    if not isinstance(value, Mapping) or not value:
        raise InputError(
            f"{where}: {name} is {value!r}; expected keys below it. An example: platform shards index --help"
        )
    return value


def _check_keys(data: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in data:
        if key not in known:
            raise unknown_name("key", str(key), known, where=where)


def _card(data: Mapping[str, Any], where: str) -> DatasetCard:
    if "kind" in data:  # as mappings said it before media and targets: kind and classes
        _check_names(data.get("classes"), f"{where}.classes")
        data = from_first_format(data, where=where)
    _check_keys(data, [f.name for f in fields(DatasetCard)], where)
    for name in ("name", "media", "modality"):
        if not isinstance(data.get(name), str):
            raise InputError(f"{where}.{name} is {data.get(name)!r}; expected a text")
    if not _NAME.fullmatch(data["name"]):
        raise InputError(f"{where}.name is {data['name']!r}; allowed: letters, digits, '_' and '-'")
    if data["media"] not in (media := plug_ins("media")):
        raise unknown_name("medium", data["media"], media, where=f"{where}.media")
    for name in ("commercial_use", "weights_may_be_published"):
        if data.get(name) not in (True, False, None):
            raise InputError(f"{where}.{name} is {data[name]!r}; allowed: true, false")
    given = data.get("input") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"{where}.input is {given!r}; expected keys: {', '.join(f.name for f in fields(InputSpec))}")
    spec = {**asdict(media[data["media"]].load().input), **given}
    _check_input(spec, f"{where}.input")
    targets = _targets(data.get("targets") or {}, f"{where}.targets")
    try:
        said = {**_CARD_DEFAULTS, "title": data["name"], **data}
        return DatasetCard.from_dict({**said, "targets": targets, "input": spec})
    except InputError as fault:
        raise InputError(f"{where}: {str(fault).removeprefix('dataset card: ')}") from None


def _targets(data: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {data!r}; expected NAME: {{type: ..., ...}} for each")
    for name, target in data.items():
        if not isinstance(target, Mapping) or not isinstance(target.get("type"), str):
            types = ", ".join(plug_ins("targets"))
            raise InputError(f"{where}.{name} is {target!r}; expected {{type: ..., ...}} with a type of {types}")
        if "names" in target:
            _check_names(target["names"], f"{where}.{name}.names")
    return data


def _check_names(names: Any, where: str) -> None:
    is_names = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not is_names or len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"{where} is {names!r}; expected at least two different names")


def _check_input(spec: Mapping[str, Any], where: str) -> None:
    _check_keys(spec, [f.name for f in fields(InputSpec)], where)
    channels = spec.get("channels", ["image"])
    if not isinstance(channels, list | tuple) or not channels or not all(isinstance(c, str) for c in channels):
        raise InputError(f"{where}.channels is {channels!r}; expected the channels' names in order")
    spacing = spec.get("spacing_mm")
    if spacing is not None and (not _is_numbers(spacing, (3,)) or min(spacing) <= 0):
        raise InputError(f"{where}.spacing_mm is {spacing!r}; expected [z, y, x] in millimetres, or null")
    orientation = spec.get("orientation")
    if orientation is not None and not (isinstance(orientation, str) and re.fullmatch("[LRAPSI]{3}", orientation)):
        raise InputError(f"{where}.orientation is {orientation!r}; expected three letters such as RAS, or null")
    intensity = spec.get("intensity", {})
    if not isinstance(intensity, Mapping):
        raise InputError(f"{where}.intensity is {intensity!r}; expected {{mode, window, mean, std}}")
    _check_keys(intensity, [f.name for f in fields(Intensity)], f"{where}.intensity")
    if intensity.get("mode", "window") not in ("window", "zscore"):
        raise InputError(f"{where}.intensity.mode is {intensity['mode']!r}; allowed: window, zscore")
    for name, lengths in (("window", (2,)), ("mean", (1, len(channels))), ("std", (1, len(channels)))):
        if name in intensity and not _is_numbers(intensity[name], lengths):
            raise InputError(
                f"{where}.intensity.{name} is {intensity[name]!r}; expected {lengths[-1]} numbers in a list"
            )
    low, high = intensity.get("window", (0, 1))
    if min(intensity.get("std", (1,))) <= 0 or low >= high:
        raise InputError(f"{where}.intensity: std must be above 0, and window go from low to high")


def _is_numbers(value: Any, lengths: Sequence[int]) -> bool:
    numbers = isinstance(value, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in value
    )
    return numbers and len(value) in lengths


def _members(data: Mapping[str, Any], card: DatasetCard, where: str) -> dict[str, str]:
    medium = medium_of(card)
    own = [*medium.array_members, *dict.fromkeys(medium.byte_members.values())]
    needed = [*own, *card.targets]
    _check_keys(data, [*needed, *medium.fields], f"{where} (of {card.media} with {', '.join(card.targets) or 'none'})")
    if missing := [name for name in needed if name not in data]:
        raise InputError(f"{where}: {', '.join(missing)} missing; needed: {', '.join(needed)}")
    members = {}
    for name, value in data.items():
        if not isinstance(value, str) or not value.strip(". "):
            raise InputError(f"{where}.{name} is {value!r}; expected what follows the first dot of a member's name")
        members[name] = _checked_member(name, value.strip(". "), card, f"{where}.{name} is {value!r}")
    return members


def is_array(name: str, card: DatasetCard) -> bool:
    """Whether what a member means is an array: the medium's own, or a target that is per voxel."""
    return name in medium_of(card).array_members or (name in card.targets and card.targets[name].per_voxel)


def _checked_member(name: str, value: str, card: DatasetCard, told: str) -> str:
    suffix, colon, at = value.partition(":")
    suffix, last = suffix.lower(), suffix.lower().rpartition(".")[2]
    medium = medium_of(card)
    if is_array(name, card) and (colon or last != "npy"):
        raise InputError(
            f"{told}; allowed: a member that ends in npy. Other formats have no fast access to a part of them: unpack "
            "the tars and build shards (platform datasets list)"
        )
    if name in medium.byte_members.values() and (colon or byte_members().get(last) != name):
        raise InputError(f"{told}; allowed: a member that ends in {', '.join(medium.byte_members)}")
    if name in medium.fields and not (colon and at):
        raise InputError(f"{told}; expected a field of a JSON member, such as json:{name}")
    if colon and (not at or last != "json"):
        raise InputError(f"{told}; a field is written json:FIELD or json:FIELD.SUBFIELD, in a member that ends in json")
    return f"{suffix}{colon}{at}"


def _splits(data: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(data, Mapping):
        raise InputError(f"{where} is {data!r}; expected train, val or test, each with patterns of file names")
    splits = {}
    for split, value in data.items():
        if split not in SPLITS:
            raise unknown_name("split", str(split), SPLITS, where=where)
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(p, str) for p in patterns):
            raise InputError(f"{where}.{split} is {value!r}; expected a pattern such as {split}-*.tar, or a list")
        splits[split] = tuple(patterns)
    return splits
