"""Data at rest (readers, shards) and in motion (order, stages, streams). Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.data.raw.pairs import check_pair as check_pair
    from inflate3d.data.raw.readers import Volume as Volume
    from inflate3d.data.raw.readers import read_volume as read_volume
    from inflate3d.data.raw.readers import write_nifti as write_nifti
    from inflate3d.data.samples.frames import decode_frames as decode_frames
    from inflate3d.data.samples.video_info import VideoInfo as VideoInfo
    from inflate3d.data.samples.video_info import probe_video as probe_video
    from inflate3d.data.shards.check import check_shards as check_shards
    from inflate3d.data.shards.manifest import Manifest as Manifest
    from inflate3d.data.shards.manifest import ShardEntry as ShardEntry
    from inflate3d.data.shards.reader import BrokenSample as BrokenSample
    from inflate3d.data.shards.reader import RawMembers as RawMembers
    from inflate3d.data.shards.reader import ShardReader as ShardReader
    from inflate3d.data.shards.writer import build_shards as build_shards

_NAMES = {
    "samples.frames": ("decode_frames",),
    "samples.video_info": ("VideoInfo", "probe_video"),
    "raw.pairs": ("check_pair",),
    "raw.readers": ("Volume", "read_volume", "write_nifti"),
    "shards.check": ("check_shards",),
    "shards.manifest": ("Manifest", "ShardEntry"),
    "shards.reader": ("BrokenSample", "RawMembers", "ShardReader"),
    "shards.writer": ("build_shards",),
}
_HOME = {name: f"inflate3d.data.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
