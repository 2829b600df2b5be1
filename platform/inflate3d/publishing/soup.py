"""publish_soup: the average of several runs or publications of one kind, as a publication of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.publishing.additions import Additions
from inflate3d.publishing.again import folder_of
from inflate3d.publishing.average import averaged
from inflate3d.publishing.contents import Contents, published_contents
from inflate3d.publishing.destination import is_publication, parse_destination
from inflate3d.publishing.export import Outcome, export, source_weights
from inflate3d.publishing.from_run import NOTHING, run_contents
from inflate3d.publishing.precision import Precision
from inflate3d.publishing.recalibrated import Recalibration, recalibrated

_OF_A_MEMBER = ("seed", "steps")


def publish_soup(
    sources: Sequence[str],
    destination: str,
    *,
    weights: Sequence[float] | None = None,
    which: str = "best",
    domain: str | None = None,
    with_heads: bool = False,
    recalibrate: Sequence[str] = (),
    root: str = "runs/shards",
    additions: Additions = NOTHING,
    precision: Precision = "float32",
    name: str | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Publish the weighted average of all weights and statistics of runs, checkpoints or publications.

    weights: one a member, of any sum (default: equal). which, domain: of runs, as in publish_run. with_heads: heads are
    averaged too, which says something only where they began alike (model.start_heads). recalibrate, root: as in
    publish_run. The data and licences are those of all members. InputError names what differs between two members.
    """
    parse_destination(destination)
    shares = shares_of(sources, weights)
    wanted = [Recalibration.parse(text) for text in recalibrate]
    members = [contents_of(source, which=which, domain=domain, with_heads=with_heads) for source in sources]
    for source, member in zip(sources[1:], members[1:], strict=True):
        check_alike(members[0], member, names=(sources[0], source))
    contents = replace(averaged(members, shares), training=_training_of(sources, members, shares))
    _inherit(contents, members)
    if wanted:
        contents = recalibrated(contents, wanted, root)
    contents = replace(contents, training={**contents.training, **additions.to_training()})
    return export(contents, destination, precision=precision, name=name, pages=additions.reports, dry_run=dry_run)


def shares_of(sources: Sequence[str], weights: Sequence[float] | None) -> list[float]:
    """Return each member's share of 1. InputError for weights that are not positive, or not one a member."""
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise InputError(f"--weights has {len(weights)} numbers for {len(sources)} members; give one for each")
    if odd := [w for w in weights if not (math.isfinite(w) and w > 0)]:
        raise InputError(f"--weights: {odd[0]:g}; each must be above 0. Leave a member out rather than give it 0")
    return [w / sum(weights) for w in weights]


def check_alike(one: Contents, other: Contents, *, names: tuple[str, str]) -> None:
    """InputError naming the first thing in which two members differ: net, norms, domains, inputs, source, heads."""
    if (found := _difference("", _contract(one), _contract(other))) is not None:
        key, mine, theirs = found
        raise InputError(
            f"{names[0]} and {names[1]} differ in {key}: {mine} and {theirs}. A soup takes nets of one kind that began "
            "from the same weights; leave one out"
        )


def _contract(contents: Contents) -> dict[str, Any]:
    net: Any = contents.net
    stated = {
        "net": {**net.net_spec.to_dict(), "num_classes": getattr(net, "num_classes", None)},
        "norm": contents.norm,
        "norm_domains": dict(contents.norm_domains),
        "input": dict(contents.input_spec or {}),
        "inputs": dict(contents.inputs),
        "source_weights": source_weights(net),
        "classes": contents.classes,
        "heads": dict(contents.heads),
    }
    plain: dict[str, Any] = json.loads(json.dumps(stated))  # a run says in tuples what a file says in lists
    return plain


def _difference(where: str, one: Any, other: Any) -> tuple[str, str, str] | None:
    """Return (key, one's value, the other's) of the first difference."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in dict.fromkeys([*one, *other]):
            inside = f"{where}.{key}" if where else str(key)
            if (found := _difference(inside, one.get(key), other.get(key))) is not None:
                return found
        return None
    return None if one == other else (where, _shown(one), _shown(other))


def _shown(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def contents_of(source: str, *, which: str, domain: str | None, with_heads: bool) -> Contents:
    """Return the contents of a run folder, a checkpoint or a publication."""
    folder = Path(source)
    if folder.is_dir() and not is_publication(folder):
        return run_contents(folder, which=which, domain=domain, with_heads=with_heads)
    return published_contents(folder if folder.is_dir() else folder_of(source), with_heads=with_heads)


def _training_of(sources: Sequence[str], members: Sequence[Contents], shares: Sequence[float]) -> dict[str, Any]:
    """What the card says: data and cost of all members, and each one's share. Of a soup its members are counted."""
    rows, data = [], []
    for source, member, share in zip(sources, members, shares, strict=True):
        data += [card for card in member.training.get("data", []) if card not in data]
        own = member.training.get("soup") or [_row(source, member.training)]
        rows += [{**row, "share": share * row["share"]} for row in own]
    return {
        "data": data,
        "domain": (members[0].input_spec or {}).get("domain"),
        "soup": rows,
        "metrics": {},
        "cost": _cost([member.training.get("cost") for member in members]),
    }


def _row(source: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return a member's line. Its name is the last part of its address: cards state no paths."""
    told = {key: training[key] for key in _OF_A_MEMBER if key in training}
    if "interpolation" in training:
        told["alpha"] = training["interpolation"]["alpha"]
    return {"name": source.rstrip("/").rpartition("/")[2].removeprefix("local-dir:"), "share": 1.0, **told}


def _cost(costs: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """Return the sum of what members cost; None where one's cost is unknown."""
    known = [cost for cost in costs if cost]
    if len(known) < len(costs):
        return None
    hours = [cost["hours"] for cost in known]
    return {
        "steps": sum(cost["steps"] for cost in known),
        "device": ", ".join(dict.fromkeys(str(cost["device"]) for cost in known)),
        "hours": None if None in hours else round(sum(hours), 2),
    }


def _inherit(contents: Contents, members: Sequence[Contents]) -> None:
    """Keep a soup private where a member is."""
    before = [getattr(member.net, "published", None) or {} for member in members]
    if any(config.get("private") for config in before):
        contents.net.published = {**before[-1], "private": True}  # type: ignore[assignment]
