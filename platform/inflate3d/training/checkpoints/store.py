"""Checkpoints on disk: written whole, verified before use, kept by rule.

A checkpoint is a folder `checkpoints/step-XXXXXXXX` with the trainer's state (`state.ckpt`, a file, or a folder where
the strategy writes shards) and `complete.json`: format, time, step, score, the size and sha256 of every file, and the
sha256 of all that. It is written as `checkpoints/.tmp-<step>` in the same folder, flushed to disk and renamed, so a
folder with a true `complete.json` is a whole checkpoint and everything else is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError
from inflate3d.files import file_sha256, flush, sealed, unsealed, write_whole

FORMAT = "inflate3d-checkpoint/1"
_KEYS = ("format", "time", "step", "score", "metrics", "files")
COMPLETE = "complete.json"
STATE = "state.ckpt"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that claims to be whole. step: optimiser steps done. score: val/score of these very weights.

    time: when it was written, UTC in ISO 8601; empty where that was not noted.
    """

    path: Path
    step: int
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    time: str = ""

    @property
    def state(self) -> Path:
        """What Lightning is given as ckpt_path."""
        return self.path / STATE


def checkpoints_folder(run_folder: str | Path) -> Path:
    """Return where a run keeps its checkpoints."""
    return Path(run_folder) / "checkpoints"


def write_checkpoint(
    folder: Path, step: int, save: Callable[[Path], None], *, score: float | None, metrics: dict[str, float]
) -> Checkpoint:
    """Write one checkpoint whole: `save` fills the path it is given, a file or a folder. For the one writing process.

    Where several processes save together, use `begin`, save in all of them, then `commit` in one.
    """
    begin(folder, step)
    save(unfinished(folder, step) / STATE)
    return commit(folder, step, score=score, metrics=metrics)


def unfinished(folder: Path, step: int) -> Path:
    """Return the folder where the checkpoint of a step is being written."""
    return folder / f".tmp-{step:08d}"


@contextlib.contextmanager
def space_for(folder: Path, step: int) -> Iterator[None]:
    """Turn a full disk into an InputError that names the free space; the unfinished checkpoint goes, others stay.

    torch.save reports a failed write as a RuntimeError of its container.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "inline_container" not in str(error):
            raise
        temporary = unfinished(folder, step)
        written = sum(f.stat().st_size for f in temporary.rglob("*") if f.is_file()) if temporary.is_dir() else 0
        free = shutil.disk_usage(folder).free
        shutil.rmtree(temporary, ignore_errors=True)
        kept = list_checkpoints(folder)
        last = f"the last whole one is {kept[-1].path}" if kept else "there is none yet"
        raise InputError(
            f"no space for the checkpoint of step {step} in {folder}: {written / 1e6:.1f} MB were written, then "
            f"{free / 1e6:.1f} MB were free ({error}). No earlier checkpoint was touched; {last}. Free some space, or "
            "keep fewer (CheckpointWriter: keep_last, keep_every), and run the same command again"
        ) from error


def begin(folder: Path, step: int) -> None:
    """Make an empty folder for a checkpoint; leftovers of writers that died are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
        shutil.rmtree(leftover)
    unfinished(folder, step).mkdir()


def commit(folder: Path, step: int, *, score: float | None, metrics: dict[str, float]) -> Checkpoint:
    """Flush what was written, state its sizes and hashes, and give it its name; an older one of that name goes."""
    temporary, final = unfinished(folder, step), folder / _name(step)
    files = {}
    for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
        flush(file)
        files[file.relative_to(temporary).as_posix()] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    time = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"format": FORMAT, "time": time, "step": step, "score": score, "metrics": metrics, "files": files}
    write_whole(temporary / COMPLETE, sealed(content))
    if final.exists():
        final.rename(old := folder / f".old-{step:08d}")
        temporary.rename(final)
        shutil.rmtree(old)
    else:
        temporary.rename(final)
    flush(folder)
    return _checkpoint(final, content)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints that state they are complete, by step; their files are not read."""
    found = []
    for path in sorted(folder.glob("step-*")):
        if re.fullmatch(r"step-\d{8,}", path.name):
            with contextlib.suppress(ValueError, OSError):
                found.append(_checkpoint(path, _read_complete(path)))
    return found


def fault_of(path: Path) -> str | None:
    """Return what is wrong with a checkpoint folder, or None: every file is compared with its size and sha256."""
    try:
        content = _read_complete(path)
    except OSError as fault:
        return f"{COMPLETE}: {fault.strerror}"
    except ValueError as fault:
        return f"{COMPLETE}: {fault}"
    for name, expected in content["files"].items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes, {expected['bytes']} were written"
        if file_sha256(file) != expected["sha256"]:
            return f"{name} has changed since it was written (sha256)"
    return None


def find_checkpoint(run_folder: str | Path, which: str | Path = "last") -> Checkpoint | None:
    """Return the checkpoint to go on from: "last", "best" (highest val/score), or a path to one.

    "last" is None where there is no checkpoint yet. A broken one is passed over for the one before, which is logged;
    if all are broken, or a path is, that is an InputError.
    """
    if which not in ("last", "best"):
        return _at(Path(which))
    folder = checkpoints_folder(run_folder)
    whole = {c.path: c for c in list_checkpoints(folder)}
    paths = sorted((p for p in folder.glob("step-*") if p.is_dir()), key=lambda p: p.name, reverse=True)
    if which == "best":
        scored = [c for c in whole.values() if c.score is not None]
        paths = [c.path for c in sorted(scored, key=lambda c: (c.score, c.step), reverse=True)]
        if not paths:
            raise InputError(f"ckpt_path: best: {folder} holds no checkpoint with a val/score; use last, or a path")
    for path in paths:
        if (fault := fault_of(path)) is None:
            return whole[path]
        log.warning("checkpoint %s is broken (%s); trying the one before", path, fault)
    if paths:
        raise InputError(f"ckpt_path: {which}: all checkpoints in {folder} are broken; remove them to start afresh")
    return None


def superseded(
    checkpoints: list[Checkpoint], *, step: int, keep_last: int, keep_best: int, keep_every: int | None
) -> list[Checkpoint]:
    """Return the checkpoints that may go after one was written at `step`.

    Kept: the last `keep_last`, the `keep_best` of the highest score (the earlier one of equals), and those whose step
    is a multiple of `keep_every`. What lies beyond `step` (a future that was rewound) is left alone.
    """
    past = [c for c in checkpoints if c.step <= step]
    scored = sorted((c for c in past if c.score is not None), key=lambda c: (-(c.score or 0.0), c.step))
    kept = {c.path for c in [*past[-keep_last:], *scored[:keep_best]]}
    if keep_every:
        kept |= {c.path for c in past if c.step % keep_every == 0}
    return [c for c in past if c.path not in kept]


def remove(checkpoint: Checkpoint) -> None:
    """Delete a checkpoint; it stops being one before its files go."""
    (checkpoint.path / COMPLETE).unlink()
    shutil.rmtree(checkpoint.path)


def _at(path: Path) -> Checkpoint:
    folder = path.parent if path.name == STATE else path
    if not folder.is_dir():
        raise InputError(f"ckpt_path: {path} does not exist; give last, best, or a folder checkpoints/step-XXXXXXXX")
    if fault := fault_of(folder):
        raise InputError(f"ckpt_path: {folder} is not a whole checkpoint: {fault}; give last, best or another one")
    return _checkpoint(folder, _read_complete(folder))


def _checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    return Checkpoint(path, content["step"], content["score"], content["metrics"], content.get("time", ""))


def _read_complete(path: Path) -> dict[str, Any]:
    """Return what complete.json states. ValueError says what is wrong with it."""
    content, _ = unsealed((path / COMPLETE).read_bytes(), keys=_KEYS)
    if content.get("format") != FORMAT:
        raise ValueError(f"format is {content.get('format')!r}; this version reads {FORMAT!r}")
    kinds: dict[str, Any] = {"step": int, "score": (float, int, type(None)), "metrics": dict, "files": dict}
    for key, kind in kinds.items():
        if not isinstance(content.get(key, ...), kind):
            raise ValueError(f"{key} is {content.get(key)!r}")
    if path.name != _name(content["step"]):
        raise ValueError(f"step is {content['step']}, in a folder of another step")
    for name, file in content["files"].items():
        if not isinstance(file, dict) or set(file) != {"bytes", "sha256"} or ".." in Path(name).parts:
            raise ValueError(f"what it states of {name!r} is damaged")
    if not any(Path(name).parts[:1] == (STATE,) for name in content["files"]):
        raise ValueError(f"it states no {STATE}")
    return content


def _name(step: int) -> str:
    return f"step-{step:08d}"
