"""config.json of a published directory: read with bounds, and checked entry by entry before anything is built of it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from inflate3d.errors import InputError, unknown_name
from inflate3d.models.publication.first_format import FIRST, read_first_format
from inflate3d.models.publication.layout import CONFIG, FORMAT
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import NORMS

Check = Callable[[Any, str], None]
MOST_CHANNELS, LARGEST_SIZE, MOST_WINDOW_VOXELS = 4096, 65_536, 2**28
# What timm.create_model would read, load or fetch: never taken from a file.
FORBIDDEN_ARGUMENTS = frozenset(
    (
        *("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
        *("cache_dir", "scriptable", "exportable", "no_jit", "model_name", "device", "dtype"),
        *("features_only", "feature_cfg"),
    )
)


def read_published_config(folder: Path) -> dict[str, Any]:
    """Return a directory's config.json. InputError for another format (with what to do) or an entry that cannot be."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is unreadable ({str(error)[:160]}); publish or download it again") from error
    if isinstance(config, dict) and config.get("format") == FIRST:
        config = read_first_format(config, str(file))
    check_config(config, str(file))
    return config  # type: ignore[no-any-return]


def check_config(config: Any, where: str) -> None:
    """Check a publication's configuration. InputError names the entry, what it is, and what is allowed."""
    written = config.get("format") if isinstance(config, dict) else None
    if written != FORMAT:
        raise InputError(f"{where}: {_other_format(config, written)}")
    versions = config.get("versions")
    by = versions.get("inflate3d") if isinstance(versions, dict) else None
    try:
        _CONFIG(config, where)
    except InputError as fault:
        from inflate3d import __version__

        raise InputError(f"{fault} (written by inflate3d {str(by)[:40]}, this is {__version__})") from fault


def _other_format(config: Any, written: Any) -> str:
    match = re.fullmatch(re.escape(FORMAT.partition("/")[0]) + r"/(\d+)", str(written))
    if match and int(match[1]) > int(FORMAT.partition("/")[2]):
        return (
            f"format is {written!r}; this version reads {FORMAT!r}. It is newer: pip install -U inflate3d, "
            "or ask its publisher for the older format"
        )
    if match:
        return f"format is {written!r}; this version reads {FORMAT!r}. Publish it again from its run: platform publish"
    if isinstance(config, dict) and "pretrained_cfg" in config and isinstance(config.get("architecture"), str):
        return (
            f"these are 2D weights of timm; load them by timm's own name, such as {str(config['architecture'])[:60]!r}"
        )
    return f"format is {str(written)[:60]!r}; this version reads {FORMAT!r}. It is no publication of inflate3d"


# ------------------------------------------------------------------------------------------------------- what may stand


def text(most: int = 4096, pattern: str | None = None) -> Check:
    """A text of at most so many letters, matching a pattern as a whole."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or len(value) > most or (pattern and not re.fullmatch(pattern, value)):
            raise _wrong(where, value, f"a text of at most {most} letters" + (f" like {pattern}" if pattern else ""))

    return check


def number(low: float, high: float, *, whole: bool = False) -> Check:
    """A number within bounds, both included."""

    def check(value: Any, where: str) -> None:
        allowed = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
            raise _wrong(where, value, f"a {'whole ' if whole else ''}number in {low:g}..{high:g}")

    return check


def one_of(*allowed: Any) -> Check:
    """One of these values."""

    def check(value: Any, where: str) -> None:
        if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
            raise _wrong(where, value, f"one of {list(allowed)}")

    return check


def nullable(inner: Check) -> Check:
    """Null, or what `inner` allows."""
    return lambda value, where: None if value is None else inner(value, where)


def list_of(inner: Check, most: int, *, least: int = 0) -> Check:
    """A list of bounded length."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise _wrong(where, value, f"a list of {least} to {most} entries")
        for index, entry in enumerate(value):
            inner(entry, f"{where}[{index}]")

    return check


def mapping_of(key: Check, inner: Check, most: int = 256) -> Check:
    """A mapping of bounded size whose keys and values are all alike."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict) or len(value) > most:
            raise _wrong(where, value, f"a mapping of at most {most} entries")
        for name, entry in value.items():
            key(name, f"{where}: key")
            inner(entry, f"{where}.{name}")

    return check


def record(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, is_open: bool = False
) -> Check:
    """A mapping with named entries; unknown ones are refused unless it is open."""
    known = {**required, **(optional or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise _wrong(where, value, "a mapping")
        for name in required:
            if name not in value:
                raise InputError(f"{where}: {name!r} is missing; publish or download it again")
        for name, entry in value.items():
            if name in known:
                known[name](entry, f"{where}: {name}")
            elif not is_open:
                raise unknown_name("key", str(name)[:60], known, where=where)

    return check


def plain(depth: int = 4, most: int = 512) -> Check:
    """Any JSON value, of bounded depth, length and size."""

    def check(value: Any, where: str) -> None:
        if isinstance(value, dict | list):
            if depth == 0 or len(value) > most:
                raise _wrong(where, value, "something shallower and shorter")
            for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
                plain(depth - 1, most)(entry, f"{where}.{key}")
        elif isinstance(value, str):
            text()(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool) and not math.isfinite(value):
            raise _wrong(where, value, "a finite number")

    return check


def _arguments(value: Any, where: str) -> None:
    """Arguments for timm.create_model: plain, bounded values, and none that reads or fetches a file."""
    plain(depth=3, most=64)(value, where)
    if not isinstance(value, dict):
        raise _wrong(where, value, "a mapping")
    for name, entry in value.items():
        if not name.isidentifier() or name in FORBIDDEN_ARGUMENTS:
            raise InputError(f"{where}: {name[:60]!r} may not come from a published directory; publish it without")
        _bounded(entry, f"{where}.{name}")


def _bounded(value: Any, where: str) -> None:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            _bounded(entry, where)
    elif isinstance(value, int | float) and abs(value) > LARGEST_SIZE:
        raise _wrong(where, value, f"a number of at most {LARGEST_SIZE}")
    elif isinstance(value, str) and not re.fullmatch(r"[\w .,+-]{0,64}", value):
        raise _wrong(where, value, "a short plain word")


def _wrong(where: str, value: Any, allowed: str) -> InputError:
    return InputError(f"{where} is {str(value)[:60]!r}; expected {allowed}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _both(first: Check, second: Check) -> Check:
    def check(value: Any, where: str) -> None:
        first(value, where)
        second(value, where)

    return check


def _names(values: Collection[str]) -> Check:
    return one_of(*values)


_WORD = r"[A-Za-z0-9_][\w .+-]*"
_NAME = text(32)
_COUNT = number(1, 128, whole=True)
_CLASSES = list_of(text(256), 100_000)
_TRIPLE = list_of(number(1e-6, 1e6), 3, least=3)
_INTENSITY = record(
    {
        "mode": one_of("window", "zscore"),
        "window": list_of(number(-1e9, 1e9), 2, least=2),
        "mean": list_of(number(-1e9, 1e9), MOST_CHANNELS, least=1),
        "std": list_of(number(1e-9, 1e9), MOST_CHANNELS, least=1),
    }
)
_LEVELS = list_of(number(-1e12, 1e12), 2, least=2)
_RANGE = record({"low": _TRIPLE, "high": _TRIPLE})
_SEEN = record(
    {
        "volumes": number(1, 1e12, whole=True),
        "field_of_view_mm": _RANGE,
        "spacing_mm": _RANGE,
        "intensity": record({"p0.5": _LEVELS, "median": _LEVELS, "p99.5": _LEVELS}),
    }
)
_INPUT = record(
    {"axes": one_of("BCDHW"), "channels": list_of(text(256), MOST_CHANNELS, least=1)},
    {
        "spacing_mm": nullable(_TRIPLE),
        "orientation": nullable(text(3, r"[RLAPSI]{3}")),
        "intensity": nullable(_INTENSITY),
        "media": text(64, _WORD),
        "modality": text(64, _WORD),
        "domain": text(128, _WORD),
        "sample": plain(depth=2, most=32),
        "seen": _SEEN,
    },
    is_open=True,
)
_PLAN = record(
    {
        "name": text(64),
        "kernels": list_of(nullable(_COUNT), 16, least=1),
        "strides": list_of(_COUNT, 16, least=1),
        "head_pool": nullable(_COUNT),
    },
    {"layers": mapping_of(text(128, r"[\w.*?\[\]-]+"), list_of(_COUNT, 2, least=2))},
)
_NET_ENTRIES = record(
    {
        "base": text(128, r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?"),
        "in_chans": number(1, MOST_CHANNELS, whole=True),
        "num_classes": nullable(number(0, 1_000_000, whole=True)),
        "inflation": record({"taps": _NAME, "overshoot": number(0, 2)}),
        "plan": _PLAN,
        "attention": _NAME,
        "statistics": _NAME,
    },
    {"global_pool": nullable(text(32, r"\w*")), "base_kwargs": _arguments, "time_padding": _NAME},
)


def _net(value: Any, where: str) -> None:
    """A net whose entries are bounded, and whose inflation is one."""
    _NET_ENTRIES(value, where)
    try:
        NetSpec.from_dict(value)
    except InputError as fault:
        raise InputError(f"{where}: {fault}") from None


def _window(value: Any, where: str) -> None:
    """(D, H, W) of what evaluation answers for at once: it is allocated, so its voxels are bounded."""
    list_of(number(1, 4096, whole=True), 3, least=3)(value, where)
    if math.prod(value) > MOST_WINDOW_VOXELS:
        raise _wrong(where, value, f"(D, H, W) of at most {MOST_WINDOW_VOXELS} voxels")


_REGION = record({"name": text(256), "labels": _CLASSES, "written": text(256)})
_TARGET = record(
    {"type": text(64, _WORD)},
    {"names": _CLASSES, "annotated": _CLASSES, "ignored": _CLASSES, "regions": list_of(_REGION, 256)},
    is_open=True,
)
# What is installed decides which types there are: a net loads without its heads' packages.
_HEAD = record(
    {"type": text(64, _WORD), "task": text(128, _WORD), "dataset": text(128, _WORD), "head": _arguments},
    {
        "media": text(64, _WORD),
        "target": nullable(_both(_TARGET, plain(depth=4, most=100_000))),
        "window": nullable(_window),
        "window_overlap": number(0, 0.99),
        "input": _INPUT,
        "tensors": text(128, _WORD),
        "label_names": _CLASSES,
    },
)
_CARD = record(
    {
        "name": text(256),
        "licence": text(256),
        "commercial_use": one_of(True, False, None),
        "weights_may_be_published": one_of(True, False),
    },
    is_open=True,
)
_SHARE = number(0, 1)
_WAYS = {  # how weights came about that no training ended in
    "interpolation": record({"alpha": _SHARE, "start": text(4096)}, is_open=True),
    "soup": list_of(record({"name": text(4096), "share": _SHARE}, {"alpha": _SHARE}, is_open=True), 4096, least=1),
    "recalibrated": mapping_of(text(128), record({"split": text(64), "samples": number(1, 1e12)}, is_open=True)),
    "joined": list_of(
        record({"heads": _CLASSES, "metrics": mapping_of(text(4096), number(-1e12, 1e12))}, is_open=True), 4096, least=1
    ),
}
_TRAINING = _both(record({}, {"data": list_of(_CARD, 4096), **_WAYS}, is_open=True), plain(depth=8, most=100_000))
_CONFIG = record(
    {
        "format": one_of(FORMAT),
        "net": _net,
        "norm": _names(NORMS),
        "norm_domains": mapping_of(text(128, _WORD), text(128)),
        "input": _INPUT,
    },
    {
        "architecture": text(160),
        "private": one_of(True, False),
        "classes": nullable(_CLASSES),
        "source_weights": nullable(plain(depth=2)),
        "training": _TRAINING,
        "versions": mapping_of(text(64), text(64)),
        "heads": mapping_of(text(128, _WORD), _HEAD),
        "inputs": mapping_of(text(128, _WORD), _INPUT),
    },
    is_open=True,  # a newer minor version may say more
)
