"""What training volumes were like: it travels from shards to predictions, and what is far outside gets a warning."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inflate3d.contracts import DatasetCard, Intensity
from inflate3d.data.samples.seen import MEASURED, Seen, measure_intensity
from inflate3d.data.shards.statistics import summarise_records
from inflate3d.errors import InputError
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.transform import InputTransform
from toy_batches import toy_card

WINDOW, ZSCORE = Intensity("window", (-1000, 1000)), Intensity("zscore")
SHIPPED = "tf_efficientnet_lite0_3d.v2"


def record(array: np.ndarray, spacing_mm: tuple[float, ...] = (2.0, 1.0, 1.0)) -> dict[str, Any]:
    """A sample's record as a build writes it, of a volume (D, H, W)."""
    return {"shape": [1, *array.shape], "spacing_mm": list(spacing_mm), "intensity": measure_intensity(array)}


def ct(seed: int, *, shift: float = 0, scale: float = 1, size: tuple[int, ...] = (20, 40, 30)) -> np.ndarray:
    """Air, water and bone."""
    draw = np.random.default_rng(seed)
    return (scale * (draw.choice([-1000, 0, 0, 60, 900], size) + draw.normal(0, 20, size)) + shift).astype(np.float32)


def seen(intensity: Intensity = WINDOW) -> Seen:
    records = [record(ct(i, size=(20 + i, 40, 30)), (2.0, 1.0 + 0.1 * i, 1.0)) for i in range(4)]
    found = Seen.of(records, intensity)
    assert found is not None
    return found


def test_ranges_are_those_of_the_records() -> None:
    found = seen()
    assert (found.volumes, found.spacing_mm) == (4, ((2.0, 1.0, 1.0), (2.0, 1.3, 1.0)))
    assert found.field_of_view_mm == ((40.0, 40.0, 30.0), (46.0, 52.0, 30.0))
    levels = [np.percentile(ct(i, size=(20 + i, 40, 30)), (0.5, 50, 99.5)) for i in range(4)]
    np.testing.assert_allclose(found.intensity, (np.min(levels, 0), np.max(levels, 0)), rtol=1e-4)


def test_z_scores_are_of_each_volume() -> None:
    volumes = [ct(0), ct(1, shift=5000, scale=3)]  # in raw numbers far from each other
    found = Seen.of([record(v) for v in volumes], ZSCORE)
    assert found is not None
    levels = [np.percentile((v - v.mean()) / v.std(), (0.5, 50, 99.5)) for v in volumes]
    np.testing.assert_allclose(found.intensity, (np.min(levels, 0), np.max(levels, 0)), atol=1e-3)
    assert found.unlike(record(ct(2, shift=-700, scale=0.01)), ZSCORE) == []


@pytest.mark.parametrize(
    ("array", "spacing_mm", "told"),
    [
        (ct(9), (2.0, 1.0, 1.0), []),
        (ct(9, size=(40, 40, 30)), (2.0, 1.0, 1.0), []),  # 80 mm: not yet twice 46
        (ct(9, size=(47, 40, 30)), (2.0, 1.0, 1.0), ["field of view (D x H x W) is 94 x 40 x 30 mm, in training 40 x"]),
        (ct(9, size=(20, 40, 14)), (2.0, 1.0, 1.0), ["field of view (D x H x W) is 40 x 40 x 14 mm"]),
        (ct(9), (2.0, 1.0, 1.6), ["spacing (D x H x W) is 2 x 1 x 1.6 mm, in training 2 x 1 x 1 to 2 x 1.3 x 1 mm"]),
        (ct(9), (1.0, 1.0, 1.0), ["spacing (D x H x W) is 1 x 1 x 1 mm"]),
        (ct(9, shift=1024), (2.0, 1.0, 1.0), ["0.5 % of its", "half of its voxels lie below", "99.5 % of its"]),
        (
            ct(9, scale=1e-3),
            (2.0, 1.0, 1.0),
            ["0.5 % of its voxels lie below -1.0", "99.5 % of its"],
        ),
        (np.zeros((20, 40, 30), np.float32), (2.0, 1.0, 1.0), ["0.5 % of its voxels lie below 0, in", "99.5 % of its"]),
    ],
)
def test_what_is_far_outside_is_told_with_its_numbers(array: np.ndarray, spacing_mm: Any, told: list[str]) -> None:
    found = seen().unlike(record(array, spacing_mm), WINDOW)
    assert len(found) == len(told)
    for text, part in zip(found, told, strict=True):
        assert text.startswith(("its ", "0.5 %", "half", "99.5 %"))
        assert part in text


def test_every_volume_that_was_seen_is_like_what_was_seen() -> None:
    for i in range(4):
        assert seen().unlike(record(ct(i, size=(20 + i, 40, 30)), (2.0, 1.0 + 0.1 * i, 1.0)), WINDOW) == []


def test_statistics_of_shards_hold_it_and_it_is_read_back_whole() -> None:
    card: DatasetCard = replace(toy_card("t"), targets={})
    statistics = summarise_records([record(ct(i)) for i in range(3)], card)
    plain = json.loads(json.dumps(statistics["seen"]))
    assert list(plain["intensity"]) == list(MEASURED)
    assert Seen.from_dict(plain) == Seen.of([record(ct(i)) for i in range(3)], card.input.intensity)
    assert Seen.from_dict(plain).to_dict() == plain
    bare = {"shape": [3, 8, 16, 16], "spacing_mm": [0.04, 1.0, 1.0]}
    assert "seen" not in summarise_records([bare], card)  # a video measures no voxels


def test_a_transform_warns_of_a_file_that_its_weights_cannot_know(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = published_folder(SHIPPED)
    assert folder is not None
    transform = InputTransform(read_published_config(folder)["input"])
    assert transform.seen is not None
    assert transform.seen.volumes == 180
    draw = np.random.default_rng(0)
    for name, size in (("crop", (36, 46, 34)), ("brain", (91, 109, 91))):
        array = draw.normal(100, 20, size).astype(np.float32)
        nib.save(
            nib.Nifti1Image(array, np.diag([1.0 if name == "crop" else 2.0] * 3 + [1.0])), tmp_path / f"{name}.nii"
        )
        with caplog.at_level(logging.WARNING, "inflate3d"):
            transform(tmp_path / f"{name}.nii")
    (said,) = caplog.messages
    assert said.startswith(f"{tmp_path / 'brain.nii'} is unlike the 180 volumes that hippocampus was trained on")
    assert "(D x H x W) is 182 x 218 x 182 mm, in training 26 x 40 x 31 to 47 x 58 x 42 mm" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"volumes": 0}, "seen: volumes is '0'; expected a whole number"),
        ({"spacing_mm": {"low": [1, 1, 1]}}, "spacing_mm: 'high' is missing"),
        ({"intensity": {"p0.5": [0, 1], "median": [0, 1], "p99.5": [0]}}, "p99.5 is '[0]'; expected a list of 2"),
    ],
)
def test_ranges_of_strangers_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = published_folder(SHIPPED)
    assert folder is not None
    config = json.loads((folder / "config.json").read_text())
    config["input"]["seen"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        read_published_config(tmp_path)
    assert message in str(caught.value)
