"""One video case of a raw layout, kept as an unchanged file; and how to make one from frames."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inflate3d.contracts import RawSample
from inflate3d.errors import InputError


def read_video_case(path: Path, *, where: str, targets: Mapping[str, Any] | None = None) -> RawSample:
    """Return the file's unchanged bytes, its suffix and what is noticed; InputError for what is missing or no video."""
    from inflate3d.data.samples.video_info import probe_video

    if not path.is_file():
        raise InputError(f"{where}: no file {str(path)!r}; the clip is listed, but its file is missing")
    try:
        content = path.read_bytes()
        noticed = probe_video(content).noticed
    except InputError as error:
        raise InputError(f"{where}: {path.name}: {error}") from error
    except OSError as error:
        raise InputError(f"{where}: {path}: {error.strerror}") from error
    suffix = path.suffix[1:].lower()
    return RawSample(video=content, video_suffix=suffix, targets=dict(targets or {}), noticed=noticed)


def encode_video(frames_THWC: np.ndarray, *, fps: int, is_intra: bool = False) -> bytes:
    """Return frames (T, H, W, 3) uint8 as an MPEG-4 file: the same bytes for the same frames. H and W must be even.

    is_intra: each frame is coded by itself, so that it tells nothing of the others.
    """
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        # mpeg4 is built into FFmpeg, so every build has it; x264 is not in all of them.
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2", "flags": "+qscale+bitexact"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        if is_intra:
            stream.codec_context.gop_size = 1
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()
