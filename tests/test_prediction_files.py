"""What predict reads and writes by path: no case is passed over, none is written by what its name says."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_series
from inflate3d.contracts import DatasetCard, InputSpec, Intensity
from inflate3d.data.raw.readers import read_volume
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answers import write_map
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case

IMAGE = np.random.default_rng(0).integers(0, 200, (24, 28, 20)).astype(np.int16)
LABELS = (IMAGE > 100).astype(np.uint8)
PLACES = ("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "sform_code", "srow_x", "srow_y", "srow_z")


def content(version: Any = nib.Nifti1Image) -> bytes:
    image = version(IMAGE, np.array([[0, -2.0, 0, 7], [2, 0, 0.5, 8], [0, 0, 2, 9], [0, 0, 0, 1]]))
    image.set_qform(np.eye(4), 1)
    image.set_sform(image.affine, 2)
    image.header.set_xyzt_units("micron")
    return image.to_bytes()


def card() -> DatasetCard:
    words = dict.fromkeys(("name", "title", "modality", "url", "licence", "citation"), "x")
    rights: dict[str, Any] = {"commercial_use": None, "weights_may_be_published": False}
    spec = InputSpec(("mri",), None, "RAS", Intensity("zscore"))
    return DatasetCard(media="volume", targets={}, input=spec, **words, **rights)


@pytest.mark.parametrize("name", ["packed.nii", "packed.nii.gz", "plain.nii.gz", "plain.nii", "UPPER.NII.GZ"])
@pytest.mark.parametrize("version", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_label_map_carries_both_places_of_its_input(tmp_path: Path, name: str, version: Any) -> None:
    raw = content(version)
    (tmp_path / name).write_bytes(raw if name.startswith("plain") else gzip.compress(raw))
    for output in ("out.nii.gz", "out.nii"):
        write_map(tmp_path / output, LABELS, read_volume(tmp_path / name).affine, like=tmp_path / name)
        written: Any = nib.load(tmp_path / output)
        np.testing.assert_array_equal(np.asanyarray(written.dataobj), LABELS)
        assert type(written) is version
        source = version.from_bytes(raw).header
        assert all((written.header[field] == source[field]).all() for field in (*PLACES, "xyzt_units"))


def test_a_label_map_of_another_format_lies_on_its_input(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(IMAGE.transpose(2, 1, 0))
    image.SetSpacing((1, 1.5, 2))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    write_series(tmp_path / "dicom", ImageOrientationPatient=[1, 0, 0, 0, 0.96, -0.28])
    for like in (tmp_path / "a.nrrd", tmp_path / "dicom"):
        stored = read_volume(like, orientation=None)
        labels = np.zeros(stored.array.shape[:0:-1], np.uint8)
        write_map(tmp_path / "out.nii.gz", labels, stored.affine, like=like)
        written = read_volume(tmp_path / "out.nii.gz", orientation=None, is_mask=True)
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-5)


def test_a_link_to_nothing_is_a_case_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content()))
    (tmp_path / "b.nii.gz").symlink_to("../.git/annex/objects/b")
    assert media_in(tmp_path) == {"volume"}
    cases = find_cases(tmp_path, card())
    assert [case.key for case in cases] == ["a", "b"]
    read_case(cases[0], card())
    with pytest.raises(InputError, match=r"b\.nii\.gz"):
        read_case(cases[1], card())


def test_keys_of_any_script_can_be_predicted(tmp_path: Path) -> None:
    for name in ("视频一", "Müller 1 (links)", "a.b", "x" * 220):
        (tmp_path / f"{name}.nii").write_bytes(content())
    cases = find_cases(tmp_path, card())
    assert {case.key for case in cases} == {"视频一", "Müller 1 (links)", "a.b", "x" * 220}
    for case in cases:
        members, _ = read_case(case, card())
        assert members["image"].shape == (1, 20, 24, 28)


@pytest.mark.slow
def test_predict_names_each_case_that_cannot_be_read_and_keeps_the_others(
    platform_command: Callable[..., CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    raw = nib.Nifti1Image(IMAGE, np.eye(4)).to_bytes()
    for name in ("packed.nii", "good.nii.gz", "Müller 1.nii.gz"):
        (folder / name).write_bytes(gzip.compress(raw))
    (folder / "plain.nii.gz").write_bytes(raw)
    (folder / "cut.nii.gz").write_bytes(gzip.compress(raw)[:-40])
    (folder / "link.nii.gz").symlink_to("nowhere")
    (folder / "pointer.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    words = ("tf_efficientnet_lite0_3d.v2", "--dataset", "hippocampus", "--input", "in", "--output", "out")
    done = platform_command("predict", *words)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "3 of 7 cases could not be read; the other 4 are in out" in done.stderr
    for name in ("cut: ", "link: ", "pointer: "):
        assert name in done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("packed.nii.gz", "good.nii.gz", "Müller 1.nii.gz", "plain.nii.gz")
    }
