"""What a person should know of a set before training on it, worst first: noticed.jsonl beside the manifest.

Each line is {"kind", "key", "split", "text"}. Readers tell what they did to single samples (`noticed` of a RawSample);
what only the whole set shows (duplicates, outliers, classes without samples) is found here. It follows from the shards
alone, so a build that was stopped, or made in parts, tells the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard
from inflate3d.data.shards.own_files import NOTICED_FILE
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.survey import INTENSITIES, Survey
from inflate3d.errors import InputError
from inflate3d.files import write_whole

KINDS = {
    "rejected": "cannot be read, and is not in the shards",
    "in two splits": "the same image in training and in held-out data: scores will be too good",
    "duplicate": "the same image more than once",
    "constant": "every voxel of the image, or pixel of the video, has one value",
    "class without samples": "no sample of the train split shows it",
    "unlabelled": "a target is not known; losses and metrics leave it out",
    "empty mask": "the mask shows the background alone",
    "outlier of spacing": "far from the spacing of the others",
    "outlier of size": "far from the size of the others",
    "outlier of intensity": "far from the intensities of the others: another unit, scaling or kind of image",
}
"""What the whole set shows, worst first. What readers noticed follows, the rarest first."""
_FEWEST = 5  # samples below which nothing is far from the others
_SPREADS = 6.0
_RATIOS = {"spacing": 1.5, "size": 2.0, "intensity": 4.0}
_LEVEL = 0.25  # of a typical range, from lowest to highest


@dataclass(frozen=True)
class Finding:
    """One fact. key: of the sample; "" for a fact of the whole set. split: "" where it has none."""

    kind: str
    key: str
    split: str
    text: str


def find_noticed(folder: Path, survey: Survey) -> list[Finding]:
    """Return all findings of a set, the worst kind first and within one in the order of the samples."""
    found = [Finding("rejected", r["key"], "", r["reason"]) for r in survey.manifest.rejects]
    for n, kind, text in sorted(_of_samples(folder, survey), key=itemgetter(0)):
        found.append(Finding(kind, survey.keys[n], survey.splits[n], text))
    found += _of_targets(survey)
    counts = Counter(finding.kind for finding in found)
    ranks = {kind: rank for rank, kind in enumerate(KINDS)}
    return sorted(found, key=lambda f: (ranks.get(f.kind, len(ranks)), counts[f.kind], f.kind))


def count_kinds(findings: list[Finding]) -> dict[str, int]:
    """Return how many samples each kind holds for, in the order of the findings."""
    keys: dict[str, set[tuple[str, str]]] = {}
    for finding in findings:
        keys.setdefault(finding.kind, set()).add((finding.key, finding.text if not finding.key else ""))
    return {kind: len(found) for kind, found in keys.items()}


def save_noticed(folder: Path, findings: list[Finding]) -> None:
    """Write folder/noticed.jsonl whole, or not at all."""
    lines = [json.dumps(asdict(finding), ensure_ascii=False) + "\n" for finding in findings]
    write_whole(folder / NOTICED_FILE, "".join(lines))


def read_noticed(folder: str | Path) -> list[Finding] | None:
    """Read folder/noticed.jsonl; None where there is none. InputError names the line that is wrong."""
    path = Path(folder) / NOTICED_FILE
    if not path.is_file():
        return None
    found, content = [], path.read_bytes()
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    for number, line in enumerate(lines, start=1):
        try:
            finding = Finding(**json.loads(line))
            if not all(isinstance(value, str) for value in asdict(finding).values()):
                raise TypeError("a value is no text")
        except (ValueError, TypeError, RecursionError) as fault:
            again = f"Write it again: platform shards report {folder}"
            raise InputError(f"{path}:{number}: is no line that a build writes ({str(fault)[:80]}). {again}") from fault
        found.append(finding)
    return found


def _of_samples(folder: Path, survey: Survey) -> Iterator[tuple[int, str, str]]:
    """Yield (sample, kind, text)."""
    for n, facts in survey.noticed.items():
        yield from ((n, kind, text) for kind, text in facts)
    yield from _duplicates(survey)
    yield from _constant(folder, survey)
    axes = dict(zip("DHW", range(3), strict=True))
    for axis, column in axes.items():
        yield from _far("spacing", f"spacing along {axis}", survey.spacing_mm[:, column])
        yield from _far("size", f"size along {axis}", survey.shape[:, column + 1])
    yield from _unlike_intensities(survey)


def _duplicates(survey: Survey) -> Iterator[tuple[int, str, str]]:
    first: dict[str, int] = {}
    for n, image in enumerate(survey.images):
        if not image or (other := first.setdefault(image, n)) == n:
            continue
        differ = [name for name, values in survey.told.items() if values[n] != values[other]]
        unlike = f", but {' and '.join(differ)} differ{'s' * (len(differ) == 1)}" if differ else ""
        kind = "duplicate" if survey.splits[n] == survey.splits[other] else "in two splits"
        yield n, kind, f"the image of {survey.keys[other]} ({survey.splits[other]}){unlike}"


def _constant(folder: Path, survey: Survey) -> Iterator[tuple[int, str, str]]:
    """Images whose measured voxels are all alike are read whole, as the others may differ; not over the net."""
    reader = ShardReader(folder, survey.manifest)
    if reader.remote is not None:
        return
    for n in np.flatnonzero(survey.intensity[:, INTENSITIES.index("std")] == 0).tolist():
        image = np.asarray(reader.sample(*survey.places[n]).decode()["image"])
        if (image == image.flat[0]).all():
            yield n, "constant", f"every voxel is {image.flat[0]:g}"


def _far(what: str, name: str, values: np.ndarray) -> Iterator[tuple[int, str, str]]:
    """Yield values above 0 that are far from the median, as a ratio; spreads are 1.48 times the median distance."""
    known = np.flatnonzero(values > 0)
    if len(known) < _FEWEST:
        return
    logs = np.log(values[known])
    distance = np.abs(logs - np.median(logs))
    limit = max(np.log(_RATIOS[what]), _SPREADS * 1.4826 * float(np.median(distance)))
    middle = float(np.median(values[known]))
    for n in known[distance > limit * (1 + 1e-9)].tolist():
        yield n, f"outlier of {what}", f"{name} is {values[n]:.4g}, the median {middle:.4g}"


def _unlike_intensities(survey: Survey) -> Iterator[tuple[int, str, str]]:
    low, middle, high, _ = survey.intensity.T
    width = high - low
    yield from _far("intensity", "the range of the middle 99 % of voxels", width)
    known = np.flatnonzero(np.isfinite(middle))
    if len(known) < _FEWEST:
        return
    typical = float(np.median(width[known]))
    for name, values in (("0.5 % of voxels lie below", low), ("half of the voxels lie below", middle)):
        center = float(np.median(values[known]))
        distance = np.abs(values[known] - center)
        limit = max(_LEVEL * typical, _SPREADS * 1.4826 * float(np.median(distance)))
        for n in known[distance > limit].tolist():
            yield n, "outlier of intensity", f"{name} {values[n]:.4g}; of a usual sample below {center:.4g}"


def _of_targets(survey: Survey) -> Iterator[Finding]:
    """Yield what is known of no sample, or not of all, and classes that training never sees."""
    targets = survey.manifest.card.targets
    if not targets:
        yield Finding("unlabelled", "", "", "the card states no targets: nothing is known of any sample")
    for name, target in targets.items():
        values = survey.told[name]
        for n, value in enumerate(values):
            if not target.per_voxel:
                if value is None or (isinstance(value, list) and all(v is None for v in value)):
                    yield Finding("unlabelled", survey.keys[n], survey.splits[n], f"{name} is not known")
            elif target.names and shown_classes(target, value) <= {target.names[0]}:
                yield Finding("empty mask", survey.keys[n], survey.splits[n], f"{name} shows {target.names[0]} alone")
        train = [value for value, split in zip(values, survey.splits, strict=True) if split == "train"]
        counts = sample_counts(target, train)
        for label in [label for label, count in counts.items() if not count and train]:
            yield Finding("class without samples", "", "train", f"{name}: {label}")


def sample_counts(target: Any, values: list[Any]) -> dict[str, int]:
    """Return in how many samples each of a target's names is seen; {} for a target without names."""
    tables = [t for t in target.summarise(values).values() if isinstance(t, dict)] if target.names else []
    return dict(tables[0]) if tables else {}


def known_words(card: DatasetCard, told: Mapping[str, Any]) -> str:
    """Return what is known of a sample in words, from its stored values: the classes it shows, or its numbers."""
    words = []
    for name, target in card.targets.items():
        value = told[name]
        shown = shown_classes(target, value) if target.names and value is not None else ()
        ordered = ", ".join(label for label in target.names if label in shown)
        plain = "none" if target.names else "one value a voxel" if target.per_voxel else shown_number(value)
        words.append(f"{name}: {ordered or ('not known' if value is None else plain)}")
    return "; ".join(words)


def intensity_words(statistics: Mapping[str, Any]) -> str:
    """Return a manifest's intensities in words, from the darkest to the spread; "" for shards that do not say."""
    measured = statistics.get("intensity", {})
    named = [name for name in ("p0.5", "median", "p99.5", "mean", "std") if name in measured]
    return ", ".join(f"{name} {shown_number(measured[name])}" for name in named)


def shown_number(value: Any) -> str:
    """Return a measured number with as many digits as a person reads, four; what is no number as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def shown_classes(target: Any, value: Any) -> set[str]:
    """Return the names that one sample's stored value shows."""
    return {name for name, count in sample_counts(target, [value]).items() if count}
