"""One sample of a plan, by medium and target: a patch, a whole volume or a clip; and how many a batch holds."""

# Triples are (D, H, W).

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, cast

from inflate3d.contracts import medium_of
from inflate3d.data.samples.options import VideoSample, VolumeSample
from inflate3d.errors import InputError
from inflate3d.planning.chosen import Chosen, Tree
from inflate3d.planning.fingerprint import Fingerprint
from inflate3d.planning.geometry import MOST_PATCH_VOXELS, planned_patch
from inflate3d.sample import Triple

_LEAST_SIZE = 32  # an axis of a volume that is resized
_WORTH_RESIZING = 0.9  # a little smaller would blur without a gain


class Room(NamedTuple):
    """Voxels of all samples of a step. most: what memory and the shortest useful run allow, by which samples shrink.
    well: what leaves as many steps as a run should have, by which batches shrink.
    """

    most: float
    well: float


@dataclass(frozen=True)
class Proposal:
    """sample: options of the medium. size: the (D, H, W) that the net sees. passes: how often each case is seen."""

    sample: Tree
    size: Triple
    batch_size: Chosen
    augment: str
    lr: Chosen
    passes: int


def propose(found: Fingerprint, median: Triple, stride: Triple, *, room: Room) -> Proposal:
    """Return the sample and the batch. median: of the volumes once resampled. room: what a step may hold.

    InputError for a medium that no plan is known for.
    """
    options = medium_of(found.card).options
    if options is VolumeSample:
        per_voxel = any(target.per_voxel for target in found.card.targets.values())
        if per_voxel:
            return _patches(found, median, stride, room)
        return _volumes(found, median, room)
    if options is VideoSample:
        return _clips(found, median, stride, room)
    raise InputError(f"no plan is known for {found.card.media}; write a config: platform configs list")


def _batch(found: Fingerprint, size: Triple, room: Room, *, least: int, most: int, why: str) -> Chosen:
    """Return as many samples as a step may hold, within bounds, and no more than there are training cases."""
    fitting, cases = int(max(room.well, 0) // prod(size)), found.splits["train"]
    count = max(min(fitting, most, cases), min(least, max(cases, 2)))
    if count >= most:
        return Chosen(count, why)
    limit = "all training cases" if count == cases else f"what time and memory allow, {least} at least"
    return Chosen(count, f"{limit}; else {most}")


def _patches(found: Fingerprint, median: Triple, stride: Triple, room: Room) -> Proposal:
    patch = planned_patch(median, stride, most_voxels=min(room.most / 2, MOST_PATCH_VOXELS))
    whole = planned_patch(median, stride, most_voxels=prod(median))
    less = "" if patch == whole else ", less than it: two must fit into time and memory"
    sample: Tree = {
        "patch_size": Chosen(list(patch), f"within the median volume {_by(median)}, multiples of {_by(stride)}{less}"),
        "foreground": Chosen(0.5, "half of the patches hold a voxel of a class"),
    }
    batch = _batch(found, patch, room, least=2, most=4, why="4 patches a step")
    augment = "augment/ct.yaml" if found.card.modality == "ct" else "augment/mri.yaml"
    return Proposal(sample, patch, batch, augment, Chosen(0.001, "of finetune_segmentation.yaml"), 100)


def _volumes(found: Fingerprint, median: Triple, room: Room) -> Proposal:
    sample: dict[str, Chosen] = {"size": Chosen(list(median), "the median volume: cropped or padded to it")}
    scale = (max(room.most, 0) / 4 / prod(median)) ** (1 / 3)
    size = median
    if scale < _WORTH_RESIZING:
        size = cast(Triple, tuple(min(n, max(_LEAST_SIZE, int(n * scale))) for n in median))
    if size != median:
        sample["resize"] = Chosen(list(size), f"so that four a step fit into time and memory; {_LEAST_SIZE} at least")
    batch = _batch(found, size, room, least=4, most=16, why="16 volumes a step")
    augment, lr = "augment/small_volume.yaml", Chosen(0.003, "of finetune_classification.yaml")
    return Proposal(sample, size, batch, augment, lr, 30)


def _clips(found: Fingerprint, median: Triple, stride: Triple, room: Room) -> Proposal:
    frames, height, width = median
    side = min(112, height, width)
    side -= side % stride[1] if side > stride[1] else 0
    # As large as four fit: fewer frames over the same time first, then smaller ones.
    sizes = [(min(16, frames), side), *((min(8, frames), n) for n in range(side, min(side, 64) - 1, -stride[1]))]
    count, side = next((c, n) for c, n in [*sizes, sizes[-1]] if c * n**2 * 4 <= room.most or (c, n) == sizes[-1])
    interval = max(1, min(64 // count, frames // count))
    sample: Tree = {
        "num_frames": Chosen(count, f"of {frames} in the median clip"),
        "frame_interval": Chosen(interval, f"spreads them over {count * interval} frames"),
        "crop_size": Chosen(side, f"of {height} x {width}, a multiple of {stride[1]}"),
    }
    size = (count, side, side)
    batch = _batch(found, size, room, least=4, most=16, why="16 clips a step")
    return Proposal(sample, size, batch, "augment/video.yaml", Chosen(0.0005, "of finetune_video.yaml"), 30)


def _by(triple: Triple) -> str:
    return " x ".join(map(str, triple))
