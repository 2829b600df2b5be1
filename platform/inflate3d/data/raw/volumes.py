"""One case of volumes in a raw layout: channel files and perhaps a mask, in one geometry."""

# C channel, D H W voxels along z y x

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inflate3d.contracts import AbstractDataset, DatasetCard, InputSpec, RawSample
from inflate3d.data.raw.labels import MaskFile, merged
from inflate3d.errors import InputError
from inflate3d.sample import Spacing

if TYPE_CHECKING:
    from inflate3d.data.raw.readers import Volume


def read_volume_case(
    images: Sequence[Path],
    card: DatasetCard,
    *,
    where: str,
    masks: Mapping[str, Path | Sequence[MaskFile]] | None = None,
    targets: Mapping[str, Any] | None = None,
    frame: int | None = None,
) -> RawSample:
    """Read one case in the card's orientation and spacing: its channel files stacked along C, and its masks.

    masks: the file of each per_voxel target, by name, or the files that give it together (`merged`). targets: values
    of the others. frame: of a 4-D image, from 0; None takes all as channels. InputError names the file if it is
    broken, if the number of channels is not the card's, shapes or positions differ, or a mask label has no class.
    """
    from inflate3d.data.raw.dicom_series import is_series
    from inflate3d.data.raw.pairs import check_pair

    spec = card.input
    parts = {n: [m] if isinstance(m, Path) else list(m) for n, m in (masks or {}).items()}
    for file in [*images, *(_path(part) for several in parts.values() for part in several)]:
        if not file.exists() and not file.is_symlink() and not is_series(file):
            raise InputError(f"{where}: no file {str(file)!r}; the case is listed, but its file is missing")
    volumes, read_masks = _read_on_one_grid(images, parts, spec, where, frame)
    image = volumes[0].array if len(volumes) == 1 else np.concatenate([v.array for v in volumes])
    if len(image) != len(spec.channels):
        names = ", ".join(spec.channels)
        raise InputError(
            f"{where}: {images[0].name} gives {len(image)} channels; expected {len(spec.channels)} ({names})"
        )
    values = dict(targets or {})
    for name, found in read_masks.items():
        check_pair(volumes[0], found, card.targets[name].names, where=f"{where}: {_path(parts[name][0]).name}")
        values[name] = found.array[0]
    return RawSample(
        image=image,
        targets=values,
        spacing_mm=volumes[0].spacing_mm,
        affine=volumes[0].affine,
        noticed=tuple(dict.fromkeys(fact for v in (*volumes, *read_masks.values()) for fact in v.noticed)),
    )


def _path(part: Path | MaskFile) -> Path:
    return part.path if isinstance(part, MaskFile) else part


def _read_on_one_grid(
    images: Sequence[Path],
    masks: Mapping[str, Sequence[Path | MaskFile]],
    spec: InputSpec,
    where: str,
    frame: int | None,
) -> tuple[list[Volume], dict[str, Volume]]:
    """Read channels and masks, each on the grid of the first channel, then turned and resampled alike."""
    from inflate3d.data.raw.pairs import on_grid_of
    from inflate3d.data.raw.readers import place_volume, read_volume

    first = _frame_of(read_volume(images[0], orientation=None), frame, f"{where}: {images[0].name}")

    def beside_first(file: Path, *, is_mask: bool) -> Volume:
        volume = read_volume(file, orientation=None, is_mask=is_mask)
        name = f"{'mask' if is_mask else 'channel'} {file.name}"
        return on_grid_of(volume, first, where=f"{where}: {name} beside {images[0].name}")

    def placed(volume: Volume, file: Path, *, is_mask: bool) -> Volume:
        return place_volume(
            volume, orientation=spec.orientation, spacing_mm=spec.spacing_mm, nearest=is_mask, where=file
        )

    def mask(parts: Sequence[Path | MaskFile]) -> Volume:
        if isinstance(parts[0], Path):
            return beside_first(parts[0], is_mask=True)
        return merged([p for p in parts if isinstance(p, MaskFile)], lambda f: beside_first(f, is_mask=True), where)

    channels = [placed(first, images[0], is_mask=False)]
    channels += [placed(beside_first(file, is_mask=False), file, is_mask=False) for file in images[1:]]
    return channels, {n: placed(mask(parts), _path(parts[0]), is_mask=True) for n, parts in masks.items()}


def _frame_of(volume: Volume, frame: int | None, where: str) -> Volume:
    if frame is None:
        return volume
    if frame >= len(volume.array):
        raise InputError(f"{where}: has {len(volume.array)} frames; frame {frame + 1} is asked for")
    return replace(volume, array=volume.array[frame : frame + 1])


def measure_window(
    dataset: AbstractDataset, card: DatasetCard, *, most_cases: int = 20, most_voxels: int = 100_000
) -> tuple[float, float]:
    """Return the 0.5 and 99.5 percentiles of the foreground intensities, as nnU-Net uses for CT.

    card: the dataset's, whose window is not known yet. Reads up to `most_cases` training cases, evenly spaced; broken
    ones are skipped, because the build lists them.
    Foreground is where the mask is not 0; a case without foreground or mask counts whole. Each gives at most
    `most_voxels`, evenly spaced, so that a large volume does not dominate. InputError if no case can be read
    or values don't differ.
    """
    train = [c for c in dataset.cases() if c.split == "train"]
    taken: list[np.ndarray] = []
    for case in train[:: max(1, -(-len(train) // most_cases))]:
        try:
            sample = dataset.read(case)
        except InputError:
            continue
        assert sample.image is not None
        inside = _foreground(sample, card)
        voxels = sample.image[:, inside].ravel()
        taken.append(voxels[:: max(1, len(voxels) // most_voxels)].astype(np.float64))
    low, high = np.percentile(np.concatenate(taken), [0.5, 99.5]).tolist() if taken else (0.0, 0.0)
    if not high > low:
        raise InputError(
            f"{type(dataset).__name__}: {len(taken)} of {len(train)} training cases could be read; they give no "
            f"intensity window ({low:g} to {high:g}); fix the files or set window: [low, high]"
        )
    return low, high


def _foreground(sample: RawSample, card: DatasetCard) -> np.ndarray:
    """Return where the first per_voxel target holds what is scored, (D, H, W) bool; all true where it does not."""
    assert sample.image is not None
    for name, target in card.targets.items():
        if target.per_voxel and sample.targets.get(name) is not None:
            sought = [label for labels in target.scored.values() for label in labels]
            inside = np.isin(sample.targets[name], sought) if target.names else sample.targets[name] > 0
            return inside if inside.any() else np.ones(inside.shape, bool)
    return np.ones(sample.image.shape[1:], bool)


def as_spacing(value: Sequence[float] | None, *, where: str) -> Spacing | None:
    """Return (z, y, x) in mm, checked; None keeps each volume's own spacing."""
    if value is None:
        return None
    numbers = tuple(float(v) for v in value)
    if len(numbers) != 3 or min(numbers) <= 0:
        raise InputError(f"{where}: spacing_mm is {list(value)}; expected three numbers above 0: (z, y, x) in mm")
    return numbers


def as_window(value: Sequence[float] | None, *, where: str) -> tuple[float, float] | None:
    """Return (low, high), checked; None if none is given."""
    if value is None:
        return None
    numbers = [float(v) for v in value]
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise InputError(f"{where}: window is {list(value)}; expected two increasing numbers (low, high)")
    return numbers[0], numbers[1]
