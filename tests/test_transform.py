"""create_transform: files, TorchIO images, arrays and clips become what the contract of the weights says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import inflate3d
import nibabel as nib
import numpy as np
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.models.transform import InputTransform

CT = {
    "axes": "BCDHW",
    "channels": ["hu"],
    "modality": "ct",
    "spacing_mm": [2.0, 1.0, 1.0],
    "orientation": "RAS",
    "intensity": {"mode": "window", "window": [-100.0, 300.0], "mean": [0.5], "std": [0.25]},
}
CLIP = {
    "axes": "BCDHW",
    "channels": ["red", "green", "blue"],
    "modality": "rgb",
    "sample": {"num_frames": 4, "crop_size": 28},
    "intensity": {"mode": "window", "window": [0.0, 255.0], "mean": [0.5], "std": [0.5]},
}


def test_a_npy_is_read_as_prediction_reads_it(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(-200, 400, (6, 10, 8)).astype(np.int16)
    np.save(tmp_path / "case.npy", values)
    transform = InputTransform({**CT, "spacing_mm": None})
    assert torch.equal(transform(tmp_path / "case.npy"), transform(values[None]))
    with pytest.raises(InputError, match=r"case\.npy: a \.npy states no spacing"):
        InputTransform(CT)(tmp_path / "case.npy")


def test_a_file_in_any_orientation_comes_out_alike(tmp_path: Path) -> None:
    from inflate3d.data.raw.readers import read_volume

    values = np.random.default_rng(0).integers(-200, 400, (8, 10, 6)).astype(np.int16)
    image = nib.Nifti1Image(values, np.diag([1.0, 1.0, 2.0, 1.0]))
    nib.save(image, tmp_path / "ras.nii.gz")
    turned = image.as_reoriented(nib.orientations.axcodes2ornt(tuple("PIR")))
    nib.save(turned, tmp_path / "pir.nii.gz")
    transform = InputTransform(CT)
    one, other = transform(tmp_path / "ras.nii.gz"), transform(str(tmp_path / "pir.nii.gz"))
    assert one.shape == (1, 6, 10, 8)
    torch.testing.assert_close(one, other)
    expected = (np.clip(read_volume(tmp_path / "ras.nii.gz").array, -100, 300) + 100) / 400
    torch.testing.assert_close(one, torch.from_numpy((expected.astype(np.float32) - 0.5) / 0.25))
    torch.testing.assert_close(transform(values.transpose(2, 1, 0)[None]), one)


def test_another_spacing_is_resampled_to_the_contracts(tmp_path: Path) -> None:
    values = np.zeros((8, 10, 12), np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 1.0, 1.0, 1.0])), tmp_path / "a.nii")
    assert InputTransform(CT)(tmp_path / "a.nii").shape == (1, 6, 10, 16)


def test_clips_are_scaled_and_cropped_and_augmented_in_training() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 4, 64, 96)).astype(np.uint8)
    x = InputTransform(CLIP)(frames)
    assert x.shape == (3, 4, 28, 28)
    assert -1 <= x.min() < x.max() <= 1
    torch.manual_seed(0)
    first, second = (InputTransform(CLIP, is_training=True)(frames) for _ in range(2))
    assert first.shape == second.shape == (3, 4, 28, 28)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("more", [{}, {"short_side": 31}, {"mean": [0.1, 0.2, 0.3], "std": 0.4}])
def test_a_video_file_gives_the_clip_that_validation_sees(tmp_path: Path, more: dict[str, Any]) -> None:
    from inflate3d.data.samples.views import make_stage
    from inflate3d.datasets.toy import Toy

    toy = Toy(kind="video_classification", num_train=1, num_val=1, size=64, num_frames=20)
    case = next(iter(toy.cases()))
    (tmp_path / "clip.mp4").write_bytes(toy.read(case).video or b"")
    options = {"num_frames": 4, "frame_interval": 3, "crop_size": 28, "gamma": 0.5, **more}
    record = {"num_frames": 20, "fps": 10.0, "targets": {"label": 0}}
    members = {"video": (tmp_path / "clip.mp4").read_bytes(), "json": record}
    seen = make_stage(toy.card, options, training=False)("a", members, 0).views["image"]
    intensity = toy.card.input.intensity
    spec = {
        **CLIP,
        "sample": options,
        "intensity": {"mode": "window", "window": intensity.window, "mean": intensity.mean, "std": intensity.std},
    }
    assert torch.equal(InputTransform(spec)(tmp_path / "clip.mp4"), seen)
    torch.manual_seed(0)
    assert InputTransform(spec, is_training=True)(str(tmp_path / "clip.mp4")).shape == (3, 4, 28, 28)
    with pytest.raises(InputError, match=r"no file .*none\.mp4"):
        InputTransform(spec)(tmp_path / "none.mp4")


def test_frames_are_cropped_where_training_crops_them() -> None:
    frames = np.broadcast_to(np.arange(31, dtype=np.uint8)[:, None], (3, 4, 31, 36))  # each pixel tells its row
    spec = {**CLIP, "sample": {"num_frames": 4, "crop_size": 28, "short_side": 31}}
    rows = (InputTransform(spec)(frames)[0, 0, :, 0] + 1) * 255 / 2
    assert rows.round().int().tolist() == list(range(1, 29))  # of an odd margin the smaller half lies before


def test_what_a_sample_is_follows_from_the_medium_not_from_the_modality() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 4, 64, 96)).astype(np.uint8)
    thermal = InputTransform({**CLIP, "media": "video", "modality": "thermal"})
    assert torch.equal(thermal(frames), InputTransform(CLIP)(frames))
    stained = InputTransform({**CLIP, "media": "volume", "sample": {"size": [4, 28, 28]}})
    assert stained(frames).shape == (3, 4, 28, 28)


@pytest.mark.parametrize(
    "sample", [{"size": [8, 6, 12]}, {"resize": [6, 6, 6]}, {"size": [4, 12, 4], "resize": [6, 6, 6]}]
)
def test_whole_volumes_come_out_in_the_size_of_validation(sample: dict[str, list[int]]) -> None:
    from inflate3d.data.samples.views import make_stage
    from inflate3d.datasets.toy import Toy

    toy = Toy(kind="volume_classification")
    volume = np.random.default_rng(0).normal(0, 100, (1, 10, 9, 8)).astype(np.float32)
    members = {"image": volume, "json": {"targets": {"label": 0}, "spacing_mm": [1, 1, 1]}}
    seen = make_stage(toy.card, sample, training=False)("a", members, 0).views["image"]
    intensity = toy.card.input.intensity
    spec = {
        **CT,
        "modality": "mask",
        "sample": sample,
        "intensity": {"mode": intensity.mode, "window": intensity.window, "mean": intensity.mean, "std": intensity.std},
    }
    assert torch.equal(InputTransform(spec)(volume), seen)
    torch.manual_seed(0)
    assert InputTransform(spec, is_training=True)(volume).shape == seen.shape


def test_every_net_carries_a_contract_and_a_published_one_its_plan_and_versions(tmp_path: Path) -> None:
    net = inflate3d.create_model("test_resnet", num_classes=0)
    assert net.input_spec["intensity"]["window"] == [0.0, 255.0]
    again = inflate3d.create_model(f"local-dir:{inflate3d.publish(net, str(tmp_path / 'w'))}", pretrained=True)
    assert again.input_spec["plan"]["name"] == "isotropic"
    assert again.input_spec["inflation"] == {"taps": "center", "overshoot": 0.25}
    assert set(again.input_spec["versions"]) == {"inflate3d", "torch", "timm"}
    x = np.full((3, 2, 8, 8), 255, np.uint8)
    assert torch.equal(inflate3d.create_transform(again)(x), inflate3d.create_transform(net)(x))


def test_a_missing_extra_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torchio", None)
    with pytest.raises(InputError, match=r"needs 'torchio' for this: pip install 'inflate3d\[train\]'"):
        InputTransform(CT, is_training=True)
