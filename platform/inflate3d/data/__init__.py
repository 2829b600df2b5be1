"""Data at rest (readers, shards) and in motion (order, stages, streams). Names are imported on first use (PEP 562)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inflate3d.data.manifest import Manifest as Manifest
    from inflate3d.data.manifest import ShardEntry as ShardEntry
    from inflate3d.data.readers import Volume as Volume
    from inflate3d.data.readers import check_pair as check_pair
    from inflate3d.data.readers import read_volume as read_volume
    from inflate3d.data.readers import write_nifti as write_nifti
    from inflate3d.data.shard_check import check_shards as check_shards
    from inflate3d.data.shard_reader import BrokenSample as BrokenSample
    from inflate3d.data.shard_reader import RawMembers as RawMembers
    from inflate3d.data.shard_reader import ShardReader as ShardReader
    from inflate3d.data.shard_writer import build_shards as build_shards
    from inflate3d.data.splits import read_split_file as read_split_file
    from inflate3d.data.video import VideoInfo as VideoInfo
    from inflate3d.data.video import decode_frames as decode_frames
    from inflate3d.data.video import probe_video as probe_video

_NAMES = {
    "manifest": ("Manifest", "ShardEntry"),
    "readers": ("Volume", "check_pair", "read_volume", "write_nifti"),
    "shard_check": ("check_shards",),
    "shard_reader": ("BrokenSample", "RawMembers", "ShardReader"),
    "shard_writer": ("build_shards",),
    "splits": ("read_split_file",),
    "video": ("VideoInfo", "decode_frames", "probe_video"),
}
_HOME = {name: f"inflate3d.data.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'inflate3d.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
