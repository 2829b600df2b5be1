"""What folders of shards say of themselves, as text: one in full, or several a row each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inflate3d.cli.table import print_table
from inflate3d.errors import InputError

if TYPE_CHECKING:
    from inflate3d.contracts import DatasetCard, Intensity
    from inflate3d.data import Manifest


def list_shards(places: Sequence[str]) -> None:
    """Print a row for each set at these places. What cannot be read is said after the others, as one InputError."""
    from inflate3d.data import Manifest
    from inflate3d.data.shards.glimpse import shard_folders

    rows, faults = [], []
    for folder in [folder for place in places for folder in shard_folders(place)]:
        try:
            manifest = Manifest.load(folder)
        except InputError as fault:
            faults.append(str(fault))
            continue
        splits = dict.fromkeys(entry.split for entry in manifest.shards)
        samples = ", ".join(f"{manifest.num_samples(split)} {split}" for split in splits) or "none"
        size = size_text(sum(entry.bytes for entry in manifest.shards))
        rows.append((manifest.name, samples, size, commercial_use(manifest.card), folder, manifest.card.licence))
    print_table(("dataset", "samples", "size", "commercial", "folder", "licence"), rows)
    if faults:
        raise InputError("\n".join(faults))


def commercial_use(card: DatasetCard) -> str:
    """Return what a card says of commercial use."""
    return {True: "yes", False: "no", None: "not stated"}[card.commercial_use]


def print_shards(folder: str) -> None:
    """Print the card, the splits and what was measured. InputError where there are no shards."""
    from inflate3d.data import Manifest

    manifest = Manifest.load(folder)
    card = manifest.card
    print(f"{manifest.name}: {card.title}  ({card.media}, digest {manifest.digest})\n")
    print_splits(manifest)
    rows = {
        **_measured(manifest),
        "channels": f"{', '.join(card.input.channels)} ({card.modality})",
        "orientation": card.input.orientation or "none (no anatomy)",
        "intensity": _intensity(card.input.intensity),
        **_measured_intensity(manifest),
        **{f"target {name}": f"{target.describe()}{_told(manifest, name)}" for name, target in card.targets.items()},
        "licence": f"{card.licence}; commercial use: {commercial_use(card)}; "
        f"weights may be published: {'yes' if card.weights_may_be_published else 'no'}",
        "url": card.url or "none",
        "cite": card.citation or "none",
        "rejects": ", ".join(r["key"] for r in manifest.rejects) or "none",
        "noticed": _noticed(folder),
    }
    print()
    width = max(map(len, rows)) + 2
    for name, value in rows.items():
        filled = textwrap.wrap(value, 120 - width, break_long_words=False, break_on_hyphens=False)
        print(f"{name:<{width}}" + f"\n{' ' * width}".join(filled))


def print_splits(manifest: Manifest) -> None:
    """Print shards, samples and bytes of each split."""
    splits = dict.fromkeys(e.split for e in manifest.shards)
    rows = [
        (s, len(manifest.entries(s)), manifest.num_samples(s), size_text(sum(e.bytes for e in manifest.entries(s))))
        for s in splits
    ]
    print_table(("split", "shards", "samples", "size"), rows)


def _noticed(folder: str) -> str:
    """Return how many samples each kind holds for."""
    from inflate3d.data.shards.findings import count_kinds, read_noticed

    if (findings := read_noticed(folder)) is None:
        return f"not looked for; do so: platform shards report {folder}"
    return ", ".join(f"{kind}: {count}" for kind, count in count_kinds(findings).items()) or "nothing"


def _measured(manifest: Manifest) -> dict[str, str]:
    """Return the measured shapes and spacings as text: one value, or smallest, median and largest along each axis."""
    rows = {}
    for name, title in (("shape", "(C, D, H, W)"), ("spacing_mm", "(z, y, x)")):
        numbers = manifest.statistics[name]
        texts = [f"({', '.join(f'{v:g}' for v in numbers[row])})" for row in ("min", "median", "max")]
        same = texts[0] == texts[2]
        rows[name] = f"{title} {texts[0] if same else f'{texts[0]} to {texts[2]}, median {texts[1]}'}"
    return rows


def _measured_intensity(manifest: Manifest) -> dict[str, str]:
    """Return the medians over volumes of what was measured of each; nothing for shards that do not say."""
    from inflate3d.data.shards.findings import intensity_words

    text = intensity_words(manifest.statistics)
    return {"voxels": f"medians over volumes: {text}"} if text else {}


def _told(manifest: Manifest, name: str) -> str:
    """Return the measurements of a target as text."""
    from inflate3d.data.shards.findings import shown_number

    facts = manifest.statistics.get("targets", {}).get(name, {})
    tables = {k: v if isinstance(v, dict) else {"": v} for k, v in facts.items()}
    texts = {k: ", ".join(f"{n} {shown_number(c)}".strip() for n, c in table.items()) for k, table in tables.items()}
    return "".join(f"; {key.replace('_', ' ')}: {text}" for key, text in texts.items())


def _intensity(intensity: Intensity) -> str:
    if intensity.mode == "zscore":
        return "zscore: each volume's own mean and standard deviation"
    low, high = intensity.window
    mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (intensity.mean, intensity.std))
    return f"window {low:g} to {high:g}, then mean {mean} and std {std} of 0..1"


def size_text(count: float) -> str:
    """Return bytes in the unit that a person reads."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
