"""report.html: a transfer as one self-contained page, with tables, plots and protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from inflate3d.contracts import DatasetCard
from inflate3d.evaluation.transfer.arms import INFLATED, SCRATCH, architectures, is_baseline, is_compared
from inflate3d.evaluation.transfer.plots import by_share, plot_gains, plot_mode
from inflate3d.pages.render import png_address, render_page

Rows = list[dict[str, Any]]
MODE_NAMES = {"probe": "Frozen linear probe", "knn": "Frozen nearest neighbours", "finetune": "Fine-tuning"}


def render_report(result: Mapping[str, Any]) -> tuple[str, dict[str, bytes]]:
    """Return the page, and its plots by file name; the page contains them too, so it can be sent alone."""
    view, plots = _view(result)
    modes = [mode for mode, *_ in view["modes"]]
    page = render_page(
        Path(__file__).parent,
        "report.html.jinja",
        **view,
        protocol=result["protocol"],
        comparisons={m: [c for c in comparisons(result["rows"]) if c[0]["mode"] == m] for m in modes},
        fewest_seeds=min((len(row["seeds"]) for row in result["rows"]), default=0),
        means={m: sorted({name for r in result["rows"] if r["mode"] == m for name in r["beside"]}) for m in modes},
    )
    return page, plots


def render_overview(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one page over several transfers, by name: findings, plots and tables; it can be sent alone, too."""
    views = {name: _view(result)[0] for name, result in results.items()}
    return render_page(Path(__file__).parent, "overview.html.jinja", views=views)


def _view(result: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what both pages show for a transfer, and its plots by file name."""
    arms = [arm["name"] for arm in result["arms"]]
    modes = [m for m in MODE_NAMES if any(row["mode"] == m for row in result["rows"])]
    plots = {f"{mode}.png": plot_mode(result["rows"], mode=mode, arms=arms) for mode in modes}
    gained = {mode: gains(result["rows"], mode) for mode in modes}
    plots |= {f"{mode}_gains.png": plot_gains(found) for mode, found in gained.items() if found}
    sentences, others = verdicts(result["rows"])
    view = {
        "result": result,
        "card": DatasetCard.from_dict(result["dataset"]["card"]),
        "modes": [(mode, MODE_NAMES[mode], [r for r in result["rows"] if r["mode"] == mode]) for mode in modes],
        "gains": gained,
        "images": {name: png_address(png) for name, png in plots.items()},
        "verdicts": sentences,
        "not_told_apart": others,
    }
    return view, plots


def comparisons(rows: Rows) -> Iterator[tuple[dict[str, Any], str, dict[str, float]]]:
    """Yield (row, baseline, paired difference) for every arm against every baseline; two baselines once."""
    for row in rows:
        for other, difference in row["against"].items():
            if is_compared(row["arm"], other) and not (is_baseline(row["arm"]) and row["arm"] > other):
                yield row, other, difference


def gains(rows: Rows, mode: str) -> Rows:
    """Return, by share of labels, the gain of inflated weights over scratch for each architecture."""
    found = []
    for here in by_share([row for row in rows if row["mode"] == mode]):
        arms = {row["arm"]: row for row in here}
        names = architectures(arms)
        for name in names if len(names) > 1 else ():
            scratch, inflated = arms[f"{SCRATCH} {name}"], arms[f"{INFLATED} {name}"]
            if (gain := inflated["against"].get(scratch["arm"])) is not None:
                of = {"name": name, "fraction": scratch["fraction"]}
                found.append({**of, "scratch": scratch, "inflated": inflated, "gain": gain})
    return found


def verdicts(rows: Rows) -> tuple[list[str], list[str]]:
    """Return (a sentence for each distinguishable comparison or pair of baselines; the others in a few words).

    With several architectures, one sentence per mode and share counts the pairs of baselines instead.
    """
    sentences, others = [_counted(found) for mode in MODE_NAMES for found in by_share(gains(rows, mode))], []
    is_table = bool(sentences)
    for row, other, d in comparisons(rows):
        if is_table and is_baseline(row["arm"]):  # counted above, and listed in the table
            continue
        word = "above" if d["low"] > 0 else "below" if d["high"] < 0 else "not distinguishable from"
        if word == "not distinguishable from" and not is_baseline(row["arm"]):
            others.append(f"{row['arm']} and {other} ({row['mode']}, {row['fraction']:.0%}: {d['value']:+.3f})")
            continue
        sentences.append(
            f"{MODE_NAMES[row['mode']]}, {row['fraction']:.0%} of labels: {row['arm']} is {word} {other}: "
            f"{d['value']:+.3f} {row['metric']} (95 % interval {d['low']:+.3f} to {d['high']:+.3f}, p {d['p']:.3f})."
        )
    return sentences, others


def _counted(found: Sequence[Mapping[str, Any]]) -> str:
    row, values = found[0]["scratch"], sorted(gain["gain"]["value"] for gain in found)
    above = sum(gain["gain"]["low"] > 0 for gain in found)
    below = sum(gain["gain"]["high"] < 0 for gain in found)
    return (
        f"{MODE_NAMES[row['mode']]}, {row['fraction']:.0%} of labels: of {len(found)} architectures inflated is above "
        f"scratch in {above}, below in {below} and not distinguishable in {len(found) - above - below}; gains "
        f"{values[0]:+.3f} to {values[-1]:+.3f} {row['metric']}, median {median(values):+.3f}."
    )
