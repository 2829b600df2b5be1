"""How volumes, masks and video are stored: bytes on disk, and the time to get a whole one or a part of it.

    python benchmarks/encodings.py [--quick] [--only volumes|video] [--video FILE ...]

Volumes are synthetic: a smooth body with noise, as CT has (int16), and the same as uint8; the mask has 14 organs. Files
lie in the page cache, encodings take turns, medians count: only ratios within one run mean anything. The video is drawn
here too: a moving scene with film grain, 640x360, a key frame every 250 frames as x264 does by itself.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
from inflate3d.data.samples.chunked import ChunkedArray, Region, encode_chunked
from inflate3d.data.samples.frames import decode_frames, every_frame
from inflate3d.data.samples.reencode import VideoEncoding, reencode
from inflate3d.data.samples.video_info import probe_video

CROP = (96, 96, 96)
CLIP = 16
Box = tuple[slice, ...]
Read = Callable[[Box | None], np.ndarray]


# ------------------------------------------------------------------------------------------------- volumes and masks


def body(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """A smooth volume with noise: about 1000 grey values across, noise of 10."""
    draw = np.random.default_rng(0)
    coarse = draw.normal(0, 300, [max(4, n // 32) for n in shape])
    grown = coarse
    for axis, n in enumerate(shape):
        places = np.linspace(0, grown.shape[axis] - 1, n)
        low = np.minimum(places.astype(int), grown.shape[axis] - 2)
        part = (places - low).reshape([-1 if a == axis else 1 for a in range(3)])
        grown = np.take(grown, low, axis) * (1 - part) + np.take(grown, low + 1, axis) * part
    noisy = grown.astype(np.float32)
    noisy += draw.standard_normal(shape, np.float32) * 10
    if dtype == "uint8":
        return np.clip((noisy + 1000) / 8, 0, 255).astype(np.uint8)[None]
    return noisy.astype(np.int16)[None]


def organs(shape: tuple[int, ...]) -> np.ndarray:
    """Fourteen ellipsoids in the background."""
    mask = np.zeros(shape, np.uint8)
    draw = np.random.default_rng(1)
    for label in range(1, 15):
        centre = draw.uniform(0.2, 0.8, 3) * shape
        radius = draw.uniform(0.04, 0.12, 3) * shape
        box = tuple(slice(int(max(0, c - r)), int(c + r) + 1) for c, r in zip(centre, radius, strict=True))
        grid = np.ogrid[box]
        inside = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radius, strict=True)) <= 1
        mask[box][inside] = label
    return mask


def npy(folder: Path, array: np.ndarray) -> tuple[int, Read]:
    path = folder / "a.npy"
    np.save(path, array)

    def read(box: Box | None) -> np.ndarray:
        if box is None:
            return np.load(path)
        return np.array(np.load(path, mmap_mode="r")[(..., *box)])

    return path.stat().st_size, read


def nii_gz(folder: Path, array: np.ndarray) -> tuple[int, Read]:
    path = folder / "a.nii.gz"
    nib.save(nib.Nifti1Image(array.reshape(array.shape[-3:]).T, np.eye(4)), path)

    def read(box: Box | None) -> np.ndarray:
        proxy = nib.load(path).dataobj  # type: ignore[attr-defined]
        return np.asarray(proxy).T if box is None else np.asarray(proxy[box[::-1]]).T

    return path.stat().st_size, read


def ours(folder: Path, array: np.ndarray) -> tuple[int, Read]:
    """What shards hold, each chunk checked by its hash, read from a file by offset."""
    content, table = encode_chunked(array, is_mask=array.ndim == 3)
    path = folder / "ours.b2nd"
    path.write_bytes(content)
    file = path.open("rb", buffering=0)

    def part(offset: int, size: int) -> memoryview:
        file.seek(offset)
        return memoryview(file.read(size))

    def read(box: Box | None) -> np.ndarray:
        stored = ChunkedArray(Region(len(content), part), table)
        return np.asarray(stored) if box is None else stored[(..., *box)]

    return len(content), read


def b2nd(folder: Path, array: np.ndarray, *, chunk: int, codec: str, level: int) -> tuple[int, Read]:
    """blosc2 in chunks of a side (0: the whole), bits shuffled, with nothing checked."""
    sides = tuple(min(chunk or n, n) for n in array.shape[-3:])
    sides = (1, *sides) if array.ndim == 4 else sides
    path = folder / f"{codec}-{chunk}-{level}.b2nd"
    how = {"codec": blosc2.Codec[codec], "clevel": level, "filters": [blosc2.Filter.BITSHUFFLE], "nthreads": 1}
    blocks = tuple(min(64, n) for n in sides) if chunk == 0 else sides
    options: dict[str, Any] = {"chunks": sides, "cparams": how, "urlpath": str(path), "mode": "w"}
    blosc2.asarray(array, blocks=blocks if chunk else None, **options)

    def read(box: Box | None) -> np.ndarray:
        stored: Any = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        return stored[:] if box is None else stored[(..., *box)]

    return path.stat().st_size, read


ENCODINGS: dict[str, Callable[[Path, np.ndarray], tuple[int, Read]]] = {
    "shards (chunks of 64, hashed)": ours,
    ".npy": npy,
    ".nii.gz": nii_gz,
    "b2nd 32 lz4": partial(b2nd, chunk=32, codec="LZ4", level=9),
    "b2nd 64 lz4": partial(b2nd, chunk=64, codec="LZ4", level=9),
    "b2nd 128 lz4": partial(b2nd, chunk=128, codec="LZ4", level=9),
    "b2nd 64 zstd": partial(b2nd, chunk=64, codec="ZSTD", level=5),
    "whole zstd": partial(b2nd, chunk=0, codec="ZSTD", level=5),
}


def measure_array(title: str, array: np.ndarray, rounds: int) -> None:
    """Print size, whole and crop of each encoding, relative to what shards hold."""
    draw = np.random.default_rng(2)
    starts = [
        [int(draw.integers(max(1, n - c + 1))) for n, c in zip(array.shape[-3:], CROP, strict=True)]
        for _ in range(rounds)
    ]
    boxes = [tuple(slice(s, s + c) for s, c in zip(start, CROP, strict=True)) for start in starts]
    wholes: dict[str, list[float]] = {name: [] for name in ENCODINGS}
    crops: dict[str, list[float]] = {name: [] for name in ENCODINGS}
    with tempfile.TemporaryDirectory(prefix="encodings-") as folder:
        made = {name: encode(Path(folder), array) for name, encode in ENCODINGS.items()}
        for number, box in enumerate([boxes[0], *boxes]):
            for name, (_, read) in made.items():
                whole, crop = seconds(lambda: read(None)), seconds(lambda: read(box))  # noqa: B023
                if number:  # the first round warms the caches
                    wholes[name].append(whole)
                    crops[name].append(crop)
                part = read(box)
                assert np.array_equal(part.reshape(part.shape[-3:]), array.reshape(array.shape[-3:])[box]), name
    base_whole, base_crop = (statistics.median(t["shards (chunks of 64, hashed)"]) for t in (wholes, crops))
    print(f"\n{title}: {array.nbytes / 1e6:.0f} MB; time relative to shards")
    print(f"  {'encoding':<30}{'size':>7}{'whole':>9}{'96^3 crop':>11}")
    for name, (size, _) in made.items():
        whole, crop = statistics.median(wholes[name]) / base_whole, statistics.median(crops[name]) / base_crop
        print(f"  {name:<30}{size / array.nbytes:>7.3f}{whole:>9.2f}{crop:>11.2f}", flush=True)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# ------------------------------------------------------------------------------------------------------------- video


def film(frames: int) -> bytes:
    """A scene that moves, with grain, as x264 encodes it by itself."""
    import av

    draw = np.random.default_rng(3)
    scene = np.kron(draw.integers(0, 255, (60, 200, 3)), np.ones((12, 12, 1))).astype(np.float32)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"preset": "medium", "crf": "23"})
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.thread_count = 360, 640, "yuv420p", 1
        for i in range(frames):
            y, x = i // 2 % 300, 3 * i % 1700
            picture = scene[y : y + 360, x : x + 640] + draw.standard_normal((360, 640, 1)).astype(np.float32) * 6
            frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def measure_video(title: str, content: bytes, rounds: int) -> None:
    """Print size and time of a random clip for the file as it is and encoded anew, relative to decoding all of it."""
    info = probe_video(content)
    sides = {"": None} | ({" at 128 pixels": 128} if min(info.height, info.width) > 128 else {})
    files = {"as it is": content}
    for gop in (4, 8, 12, 24):
        files |= {f"GOP {gop}{told}": reencode(content, VideoEncoding(gop, side)) for told, side in sides.items()}
    infos = {name: probe_video(file) for name, file in files.items()}  # as a shard's record holds it
    draw = np.random.default_rng(4)
    firsts = draw.integers(0, max(1, info.num_frames - CLIP + 1), rounds)
    times: dict[str, list[float]] = {name: [] for name in ("decode all", "decode all, plainly", *files)}
    for number, first in enumerate([0, *firsts.tolist()]):
        wanted = [min(first + i, info.num_frames - 1) for i in range(CLIP)]
        times["decode all"].append(seconds(lambda: decode_all(content, wanted)))  # noqa: B023
        times["decode all, plainly"].append(seconds(lambda: decode_all(content, wanted, plainly=True)))  # noqa: B023
        for name, file in files.items():
            times[name].append(seconds(lambda: decode_frames(file, wanted, info=infos[name])))  # noqa: B023
            if number == 1:  # a clip is bit-equal to a decode of the whole file
                assert np.array_equal(decode_frames(file, wanted, info=infos[name]), decode_all(file, wanted)), name
    medians = {name: statistics.median(each[1:]) for name, each in times.items()}
    print(
        f"\n{title}: {info.num_frames} frames of {info.width}x{info.height}, {len(content) / 1e6:.2f} MB; {CLIP} frames"
    )
    print("  times faster than decoding all of the original, RGB made as we do; and as a frame does it by itself")
    print(f"  {'file':<30}{'size':>7}{'as we do':>12}{'by itself':>12}")
    for name, file in files.items():
        faster, plainly = (medians[how] / medians[name] for how in ("decode all", "decode all, plainly"))
        print(f"  {name:<30}{len(file) / len(content):>7.2f}{faster:>12.1f}{plainly:>12.1f}", flush=True)


def decode_all(content: bytes, wanted: list[int], *, plainly: bool = False) -> np.ndarray:
    """Decode every frame from the first to the last; keep those wanted. plainly: each sets up its own way to RGB."""
    from av.video.reformatter import VideoReformatter

    chosen, shared = set(wanted), VideoReformatter()
    frames = {i: frame for i, frame in enumerate(every_frame(content)) if i in chosen}
    if plainly:
        return np.stack([frames[i].to_ndarray(format="rgb24") for i in wanted])
    return np.stack([shared.reformat(frames[i], format="rgb24", threads=1).to_ndarray() for i in wanted])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller data, fewer rounds")
    parser.add_argument("--only", choices=("volumes", "video"), help="leave the others out")
    parser.add_argument("--video", nargs="*", default=[], metavar="FILE", help="measure these files too")
    args = parser.parse_args()
    shape, rounds = ((100, 192, 192), 2) if args.quick else ((300, 512, 512), 5)
    if args.only != "video":
        measure_array("int16 volume", body(shape, "int16"), rounds)
        measure_array("uint8 volume", body(shape, "uint8"), rounds)
        measure_array("uint8 mask", organs(shape), rounds)
    if args.only != "volumes":
        measure_video("film", film(100 if args.quick else 240), 2 * rounds)
        for path in args.video:
            measure_video(Path(path).name, Path(path).read_bytes(), 2 * rounds)


if __name__ == "__main__":
    main()
