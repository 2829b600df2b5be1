"""One video case as raw layouts hold it: a file that must decode to its last frame; and how to make one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from inflate3d.contracts import RawSample
from inflate3d.errors import InputError


def read_video_case(path: Path, *, label: int, where: str) -> RawSample:
    """Return the file's bytes, its suffix and, as `extra`, num_frames, fps, height and width.

    The first, middle and last frames are decoded, so that a file cut short is refused here and not in training.
    InputError names the file.
    """
    from inflate3d.data.video import decode_frames, probe_video

    if not path.is_file():
        raise InputError(f"{where}: no file {str(path)!r}; the clip is listed, its file is missing")
    content = path.read_bytes()
    try:
        info = probe_video(content)
        if info.num_frames < 1:
            raise InputError("it holds no frames")
        decode_frames(content, sorted({0, info.num_frames // 2, info.num_frames - 1}))
    except InputError as error:
        raise InputError(f"{where}: unreadable video {path.name} ({len(content)} bytes): {error}") from error
    extra = {"num_frames": info.num_frames, "fps": float(info.fps), "height": info.height, "width": info.width}
    return RawSample(video=content, video_suffix=path.suffix[1:].lower(), label=label, extra=extra)


def encode_video(frames_THWC: np.ndarray, *, fps: int) -> bytes:
    """Return frames (T, H, W, 3) uint8 as an MPEG-4 file: the same bytes for the same frames. H and W must be even."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        # mpeg4 is FFmpeg's own, so every build has it; x264 is not in all of them.
        stream = container.add_stream("mpeg4", rate=fps, options={"qscale": "2", "flags": "+qscale+bitexact"})
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames_THWC:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()
