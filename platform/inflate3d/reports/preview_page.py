"""A page to look at sets before training on them: their cards, a few samples, class counts and intensities.

It is one self-contained file, of raw files and of finished shards alike: the same sets give the same bytes.
"""

# C channel, D H W voxels along z y x.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import DatasetCard, medium_of
from inflate3d.data.shards.findings import intensity_words, known_words, shown_number
from inflate3d.data.shards.glimpse import Glimpse, StoredCase
from inflate3d.data.shards.statistics import summarise_records
from inflate3d.errors import InputError
from inflate3d.files import write_whole
from inflate3d.pages.render import render_page
from inflate3d.reports.pages import MOST_TEXT, mask_colours
from inflate3d.reports.thumbnails import MOST_PLANES, draw_thumbnails

COMMERCIAL = {True: "yes", False: "no", None: "not stated"}
_BINS, _SLICES, _VOXELS = 64, 32, 50_000
"""Of a histogram; and what is taken of a sample: slices along D, and voxels of them."""
_MIDDLE = (0.1, 99.9)


def write_preview(glimpses: Sequence[Glimpse], path: str | Path) -> Path:
    """Write the page of some sets; return its path. InputError for another ending or a folder that does not exist."""
    path = Path(path)
    if path.suffix != ".html":
        raise InputError(f"--output {path}: pages are written as HTML; name a file that ends in .html")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: the folder {path.parent} does not exist; make it, or name another")
    sets = [_shown(glimpse) for glimpse in glimpses]
    page = render_page(Path(__file__).parent, "preview_page.html.jinja", sets=sets, most_text=MOST_TEXT)
    write_whole(path, page)
    return path


def _shown(glimpse: Glimpse) -> dict[str, Any]:
    """Return what the page says of one set; each case is read, drawn and let go."""
    card = glimpse.card
    samples, records, voxels = [], [], []
    for case in glimpse.cases():
        image = medium_of(card).raw_image(case.raw, MOST_PLANES)
        samples.append(_sample(case, card, image))
        records.append(case.record)
        voxels.append(_some_voxels(image))
    statistics = glimpse.statistics or summarise_records(records, card)
    measured = statistics["samples_measured"]
    return {
        "card": card,
        "commercial": COMMERCIAL[card.commercial_use],
        "count": sum(glimpse.splits.values()),
        "splits": list(glimpse.splits.items()),
        "samples": samples,
        "colours": mask_colours(card),
        "measured": f"{measured} samples{'' if glimpse.statistics else ', those that are drawn'}",
        "targets": [_target(card, name, facts) for name, facts in statistics.get("targets", {}).items()],
        "figures": list(_figures(statistics)),
        "intensities": intensity_words(statistics),
        "window": _window(card),
        "histograms": list(_histograms(card, voxels)),
    }


def _sample(case: StoredCase, card: DatasetCard, image: Any) -> dict[str, Any]:
    record = case.record
    measured = record.get("measured", {})
    told = {n: measured.get(n) if t.per_voxel else case.raw.targets[n] for n, t in card.targets.items()}
    return {
        "key": case.key,
        "split": case.split,
        "known": known_words(card, told),
        "size": " x ".join(f"{v:g}" for v in (record.get("shape") or image.shape)[1:]),
        "spacing": " x ".join(f"{v:.4g}" for v in record.get("spacing_mm") or (1.0, 1.0, 1.0)),
        "findings": [{"kind": kind, "text": text} for kind, text in record.get("noticed", ())],
        "thumbnails": draw_thumbnails(case.raw, card, image),
    }


def _target(card: DatasetCard, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a target's counts by class with their share of the largest in %, and its other facts as text."""
    tables = [table for table in facts.values() if isinstance(table, dict)]
    counts = tables[0] if tables else {}
    most = max(counts.values(), default=0) or 1
    numbers = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    return {
        "name": name,
        "described": card.targets[name].describe(),
        "counts": [(label, count, round(100 * count / most, 1)) for label, count in counts.items()],
        "facts": ", ".join(f"{key}: {shown_number(value)}" for key, value in numbers.items()),
    }


def _figures(statistics: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield rows of smallest, median and largest value."""
    for name, title, axes in (("shape", "size", "CDHW"), ("spacing_mm", "spacing", "DHW")):
        rows = [statistics[name][row] for row in ("min", "median", "max")]
        for i, axis in enumerate(axes):
            if axis != "C":
                yield f"{title} along {axis}", [f"{row[i]:.4g}" for row in rows]


def _window(card: DatasetCard) -> str:
    intensity = card.input.intensity
    return f"{intensity.window[0]:g} to {intensity.window[1]:g}" if intensity.mode == "window" else ""


def _some_voxels(image_CDHW: Any) -> np.ndarray:
    """Return voxels of evenly spaced slices, (C, N); image: an array or chunks, of which the slices are read."""
    depth = image_CDHW.shape[1]
    slices = np.linspace(0, depth - 1, min(depth, _SLICES)).round().astype(int).tolist()
    whole = slice(None)
    parts = [np.asarray(image_CDHW[(..., slice(d, d + 1), whole, whole)]) for d in slices]
    flat = np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
    return flat[:, :: max(1, flat.shape[1] // _VOXELS)]


def _histograms(card: DatasetCard, voxels: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
    """Yield one histogram a channel: heights from 0 to 1, ends and median; window: in bins, where the card has one."""
    intensity = card.input.intensity
    for i, channel in enumerate(card.input.channels):
        values = np.concatenate([one[i] for one in voxels]).astype(np.float64)
        low, middle, high = (float(v) for v in np.percentile(values, (_MIDDLE[0], 50, _MIDDLE[1])))
        found: dict[str, Any] = {"name": channel, "bars": [], "low": low, "median": middle, "high": high}
        if high > low:
            heights = np.sqrt(np.histogram(values, _BINS, (low, high))[0])
            found["bars"] = [round(float(h), 4) for h in heights / heights.max()]
            if intensity.mode == "window":
                found["window"] = [(edge - low) / (high - low) * _BINS for edge in intensity.window]
        yield found
