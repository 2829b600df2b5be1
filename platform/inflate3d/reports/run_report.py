"""report.html of a run: how it stands, scores, curves, pictures, worst cases, data, cost and config on one page.

It follows from the files in the run folder and beside its shards, and is written at any time: of a run that is under
way, was stopped, failed or has finished. A part whose file is damaged is left out, and the page says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from inflate3d.contracts import SPLITS
from inflate3d.data.shards.findings import KINDS, Finding, count_kinds, read_noticed
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.own_files import REPORT_FILE
from inflate3d.errors import InputError
from inflate3d.evaluation.pictures import FILTERS, PICTURE, PREDICTIONS
from inflate3d.evaluation.prediction.score_table import SCORES, read_scores
from inflate3d.files import write_whole
from inflate3d.pages.render import png_address, render_page
from inflate3d.remote.address import is_remote, shown, without_secrets
from inflate3d.reports.line_charts import run_charts
from inflate3d.reports.pages import MOST_TEXT
from inflate3d.training.checkpoints.store import Checkpoint, checkpoints_folder, list_checkpoints
from inflate3d.training.run.folder import ENVIRONMENT, FAILURES, METRICS, read_environment, read_run_config, read_state
from inflate3d.training.run.metrics_csv import read_metrics
from inflate3d.training.run.standing import next_commands, standing, start_command, training_cost

MOST_CASES, _MOST_FACTS = 200, 3
"""Cases of one table of scores, and facts of one kind, that are shown."""
_PNG_END = b"IEND\xaeB`\x82"
T = TypeVar("T")


def write_run_report(run_folder: str | Path) -> Path:
    """Write report.html into a run's folder; return its path. InputError: no run's folder, or its config is damaged."""
    folder = Path(run_folder)
    config = read_run_config(folder)
    path = folder / REPORT_FILE
    write_whole(path, render_page(Path(__file__).parent, "run_report.html.jinja", **_view(folder, config)))
    return path


def _view(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    faults: list[str] = []
    starts = _or_told(lambda: _starts(folder), [], faults)
    state = _or_told(lambda: read_state(folder), None, faults)
    rows = _or_told(lambda: read_metrics(folder / METRICS), [], faults)
    checkpoints = list_checkpoints(checkpoints_folder(folder))
    has_scores = any(checkpoint.score is not None for checkpoint in checkpoints)
    has_finished = state is not None and state["phase"] == "finished"
    return {
        "name": folder.resolve().name,
        "place": str(folder.resolve()),
        "written": _moment(datetime.now(UTC).timestamp()),
        "standing": standing(folder, when=_moment),
        "go_on": "" if has_finished or not starts else start_command(folder),
        "next_words": next_commands(str(folder.resolve()), has_heads=has_scores) if has_finished else "",
        "failure": _or_told(lambda: _failure(folder, state), [], faults),
        "scores": _scores(checkpoints),
        "charts": run_charts(rows),
        "logged": len(rows),
        "pictures": list(_pictures(folder, faults)),
        "cases": list(_cases(folder, faults)),
        "most_cases": MOST_CASES,
        "data": [_dataset(name, config, starts) for name in config["data"]["datasets"]],
        "most_text": MOST_TEXT,
        "cost": _cost(folder, state, checkpoints),
        "starts": starts,
        "config": without_secrets(yaml.safe_dump(config, sort_keys=False)),
        "faults": faults,
    }


def _or_told(read: Callable[[], T], otherwise: Any, faults: list[str]) -> T:
    """Return what `read` gives; where the file is damaged `otherwise`, and the fault among the others."""
    try:
        return read()
    except InputError as fault:
        faults.append(str(fault))
        return otherwise


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _starts(folder: Path) -> list[dict[str, Any]]:
    return read_environment(folder) if (folder / ENVIRONMENT).is_file() else []


def _failure(folder: Path, state: dict[str, Any] | None) -> list[str]:
    """Return why a run failed, as its last report says; [] where it did not, or there is none."""
    reports = sorted((folder / FAILURES).glob("step-*.json"))
    if not reports or state is None or state["phase"] != "failed":
        return []
    try:
        content = json.loads(reports[-1].read_bytes())
        return [*content["faults"], f"samples and losses: {reports[-1]}"]
    except (ValueError, LookupError, TypeError) as fault:
        raise InputError(f"{reports[-1]}: damaged: {fault}") from fault


def _scores(checkpoints: list[Checkpoint]) -> dict[str, Any]:
    """Return the validation metrics of the best and the last checkpoint, val/score first."""
    scored = [c for c in checkpoints if c.score is not None]
    best = max(scored, key=lambda c: (c.score or 0.0, c.step), default=None)
    shown = ([] if best is None or best is checkpoints[-1] else [best]) + checkpoints[-1:]
    names = sorted({k for c in shown for k in c.metrics if k.startswith("val/")}, key=lambda k: (k != "val/score", k))
    return {
        "steps": [(c.step, "best" if c is best else "last") for c in shown],
        "rows": [(name.removeprefix("val/"), [c.metrics.get(name) for c in shown]) for name in names],
    }


def _pictures(folder: Path, faults: list[str]) -> Any:
    """Yield (caption, address) of what the run drew: the samples of the last and the first validation, the filters."""
    drawn = sorted((folder / PREDICTIONS).glob("step-*.png"))
    own = {f"held-out samples at step {int(p.stem[5:])}": p for p in dict.fromkeys([*drawn[-1:], *drawn[:1]])}
    if not drawn:
        own["curves, and held-out samples of the best checkpoint"] = folder / PICTURE
    own["filters of the first convolution, before and after"] = folder / FILTERS
    for caption, path in own.items():
        if path.is_file():
            content = path.read_bytes()
            if content.endswith(_PNG_END):
                yield f"{caption} ({path.relative_to(folder)})", png_address(content)
            else:
                faults.append(f"{path}: is no whole PNG; a run that is under way may be writing it")


def _cases(folder: Path, faults: list[str]) -> Any:
    """Yield (file, columns, cases sorted by the first score, the worst first) of the scores that lie in the folder."""
    for path in sorted([*folder.glob(SCORES), *folder.glob(f"*/{SCORES}")]):
        columns, cases = _or_told(partial(read_scores, path), ([], {}), faults)
        rows = sorted(cases.items(), key=lambda case: (case[1][0] is None, case[1][0]))
        if rows:
            yield str(path.relative_to(folder)), columns, rows


def _dataset(name: str, config: dict[str, Any], starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what is known of one dataset of a run: samples, licence, and what its build noticed."""
    root, tasks = str(config["data"]["root"]), config["model"]["tasks"]
    place: Any = shown(root, name) if is_remote(root) else Path(root).expanduser() / name
    if isinstance(place, Path) and not place.is_dir() and starts and "folder" in starts[-1]:
        place = Path(starts[-1]["folder"]) / place
    serves = [task for task, spec in tasks.items() if name in (spec.get("init_args") or {}).get("datasets", ())]
    found: dict[str, Any] = {
        "name": name,
        "place": str(place),
        "tasks": ", ".join(serves),
        "card": None,
        "kinds": [],
        "told": "",
    }
    if is_remote(root):
        return {**found, "told": "its shards are elsewhere: nothing was read of them"}
    try:
        manifest, findings = Manifest.load(place), read_noticed(place)
    except InputError as fault:
        return {**found, "told": str(fault)}
    samples = {split: manifest.num_samples(split) for split in SPLITS}
    told = f"nobody has looked: platform shards report {place}" if findings is None else ""
    report = place / REPORT_FILE
    return {
        **found,
        "card": manifest.card,
        "samples": samples,
        "told": told,
        "kinds": _kinds(findings or []),
        "report": report.resolve().as_uri() if report.is_file() else "",
    }


def _kinds(findings: list[Finding]) -> list[tuple[str, int, str, list[Finding]]]:
    """Return (kind, samples, meaning, the first facts), the worst kind first."""
    own = {kind: [f for f in findings if f.kind == kind][:_MOST_FACTS] for kind in count_kinds(findings)}
    return [(kind, count, KINDS.get(kind, ""), own[kind]) for kind, count in count_kinds(findings).items()]


def _cost(folder: Path, state: dict[str, Any] | None, checkpoints: list[Checkpoint]) -> list[tuple[str, str]]:
    rows = []
    if state and (rate := state.get("steps_per_s")):
        rows = [
            ("time a step", f"{1 / rate:.3g} s (of the last interval that trained)"),
            ("samples", f"{state['samples_per_s']:.3g} a second, all ranks together"),
            ("waiting for data", f"{state['data_wait']:.1%} of the time"),
            ("memory", f"{state['memory_gb']:.2f} GB" if "memory_gb" in state else "not known"),
        ]
    if checkpoints and (cost := training_cost(folder, checkpoints[-1])):
        hours = "not known" if cost["hours"] is None else f"{cost['hours']:.2f} h"
        rows.append(("from the first start to the last checkpoint", f"{hours} on {cost['device']}"))
    return rows
