"""What changed between the shards that a checkpoint saw and those that are there now, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inflate3d.data.shards.manifest import Manifest

_HASH_DIGITS = 12  # enough to tell two files apart, and a checkpoint may list 10^5 of them
_MOST_NAMED = 3


def snapshot(manifest: Manifest) -> dict[str, Any]:
    """Return what a checkpoint keeps of a manifest, as plain values: the card, and each shard with its hashes."""
    columns = map(manifest.entries().texts, ("file", "sha256", "index_sha256", "split"))
    shards = {f: f"{a[:_HASH_DIGITS]} {b[:_HASH_DIGITS]} {s}" for f, a, b, s in zip(*columns, strict=True)}
    return {"card": json.loads(json.dumps(manifest.card.to_dict())), "shards": shards}


def describe_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs between two snapshots: shards added, removed, of other bytes or order, and the card's keys.

    "" if nothing does.
    """
    old, new = before["shards"], now["shards"]
    common = [file for file in old if file in new]
    parts = [
        _named("added", [file for file in new if file not in old]),
        _named("removed", [file for file in old if file not in new]),
        _named("with other bytes, index or split", [file for file in common if old[file] != new[file]]),
    ]
    if not any(parts) and list(old) != list(new):
        parts.append("the same shards in another order")
    keys = [key for key in now["card"] if now["card"][key] != before["card"].get(key)]
    if keys:
        parts.append(f"card: {', '.join(keys)}")
    return "; ".join(part for part in parts if part)


def changed_entries(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two mappings, a text an entry: "seed: 0 before, 1 now"."""
    names = [*before, *(name for name in now if name not in before)]
    return [
        f"{name}: {before.get(name, 'absent')} before, {now.get(name, 'absent')} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _named(what: str, files: list[str]) -> str:
    if not files:
        return ""
    more = f" and {len(files) - _MOST_NAMED} more" if len(files) > _MOST_NAMED else ""
    return f"{len(files)} shard{'s' * (len(files) > 1)} {what} ({', '.join(files[:_MOST_NAMED])}{more})"
