"""report.html beside shards: what a careful person looks at before training on them, on one self-contained page.

It follows from the shards alone: the same shards give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import SPLITS
from inflate3d.data.shards.findings import (
    KINDS,
    Finding,
    count_kinds,
    find_noticed,
    known_words,
    sample_counts,
    save_noticed,
)
from inflate3d.data.shards.glimpse import local_manifest, raw_sample
from inflate3d.data.shards.own_files import REPORT_FILE
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.survey import INTENSITIES, Survey, survey_shards
from inflate3d.files import write_whole
from inflate3d.pages.render import render_page
from inflate3d.reports.pages import MOST_TEXT, mask_colours
from inflate3d.reports.thumbnails import draw_thumbnails

MOST_NOTICED, MOST_OTHERS = 36, 24
"""Samples that are drawn: of those of which something was noticed, and of the rest."""
_MOST_ROWS, _BINS = 20, 32


def write_report(folder: str | Path) -> list[Finding]:
    """Write noticed.jsonl and report.html of the shards in a local folder; return what was noticed.

    InputError for a remote folder; BrokenSample where a shard is damaged.
    """
    manifest, folder = local_manifest(folder), Path(folder)
    survey = survey_shards(folder, manifest)
    findings = find_noticed(folder, survey)
    save_noticed(folder, findings)
    write_whole(folder / REPORT_FILE, _render(folder, survey, findings))
    return findings


def _render(folder: Path, survey: Survey, findings: list[Finding]) -> str:
    card, counts = survey.manifest.card, count_kinds(findings)
    kinds = [(kind, counts[kind], KINDS.get(kind, ""), [f for f in findings if f.kind == kind]) for kind in counts]
    return render_page(
        Path(__file__).parent,
        "build_report.html.jinja",
        card=card,
        digest=survey.manifest.digest,
        count=len(survey),
        splits=[(s, survey.splits.count(s), len(survey.manifest.entries(s))) for s in SPLITS if s in survey.splits],
        kinds=kinds,
        most_rows=_MOST_ROWS,
        most_text=MOST_TEXT,
        classes=list(_classes(survey)),
        colours=mask_colours(card),
        figures=list(_figures(survey)),
        samples=list(_samples(folder, survey, findings)),
    )


def _classes(survey: Survey) -> Iterator[tuple[str, str, list[tuple[str, list[int]]], list[str]]]:
    """Yield (target, its description, rows of (name, samples by split), the splits)."""
    splits: list[str] = [split for split in SPLITS if split in survey.splits]
    for name, target in survey.manifest.card.targets.items():
        values = {s: [v for v, own in zip(survey.told[name], survey.splits, strict=True) if own == s] for s in splits}
        tables = [sample_counts(target, values[s]) for s in splits]
        yield name, target.describe(), [(n, [table[n] for table in tables]) for n in target.names], splits


def _figures(survey: Survey) -> Iterator[dict[str, Any]]:
    """Yield a histogram of each measured figure: its name, heights from 0 to 1, smallest, median and largest value."""
    figures = {f"size along {axis}": survey.shape[:, i] for i, axis in enumerate("DHW", start=1)}
    figures |= {f"spacing along {axis}": survey.spacing_mm[:, i] for i, axis in enumerate("DHW")}
    figures |= {f"intensity: {name}": survey.intensity[:, i] for i, name in enumerate(INTENSITIES)}
    for name, values in figures.items():
        known = values[np.isfinite(values)]
        if not len(known):
            continue
        low, middle, high = float(known.min()), float(np.median(known)), float(known.max())
        heights = np.histogram(known, _BINS, (low, high))[0] if high > low else np.zeros(0)
        bars = [round(float(h), 4) for h in heights / max(heights.max(initial=0), 1)]
        yield {"name": name, "bars": bars, "low": low, "median": middle, "high": high, "known": len(known)}


def _samples(folder: Path, survey: Survey, findings: list[Finding]) -> Iterator[dict[str, Any]]:
    """Yield what the page shows of each sample that is drawn, the noticed ones first."""
    reader, number = ShardReader(folder, survey.manifest), {key: n for n, key in enumerate(survey.keys)}
    told: dict[str, list[Finding]] = {}
    for finding in findings:
        told.setdefault(finding.key, []).append(finding)
    for n in _chosen(findings, number, len(survey)):
        key = survey.keys[n]
        members = reader.sample(*survey.places[n])
        raw = raw_sample(members.decode(), list(members.members), survey.manifest.card)
        yield {
            "key": key,
            "split": survey.splits[n],
            "known": known_words(survey.manifest.card, {name: told[n] for name, told in survey.told.items()}),
            "size": " x ".join(f"{v:g}" for v in survey.shape[n, 1:]),
            "spacing": " x ".join(f"{v:.4g}" for v in survey.spacing_mm[n]),
            "findings": told.get(key, []),
            "thumbnails": draw_thumbnails(raw, survey.manifest.card),
        }


def _chosen(findings: Sequence[Finding], number: dict[str, int], count: int) -> list[int]:
    """Return the samples to draw: of each kind in turn, the worst kind first; then evenly spaced ones."""
    kinds: dict[str, list[int]] = {}
    for finding in findings:
        if finding.key in number:
            kinds.setdefault(finding.kind, []).append(number[finding.key])
    in_turn = (n for row in zip_longest(*kinds.values()) for n in row if n is not None)
    noticed = list(islice(dict.fromkeys(in_turn), MOST_NOTICED))
    drawn = set(noticed)
    rest = [n for n in range(count) if n not in drawn]
    even = np.unique(np.linspace(0, len(rest) - 1, min(len(rest), MOST_OTHERS)).round().astype(int))
    return [*noticed, *(rest[i] for i in even)]
