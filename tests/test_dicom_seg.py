"""A DICOM segmentation holds the predicted labels on their own slices, with their names and the model's."""

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from dicom_files import dataset, write_series
from inflate3d.data.raw.readers import read_volume
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction import dicom_seg
from inflate3d.evaluation.prediction.answers import MapOptions
from inflate3d.evaluation.prediction.dicom_codes import meaning_of
from inflate3d.evaluation.prediction.dicom_seg import check_dicom_inputs, write_dicom_seg
from inflate3d.evaluation.prediction.predict import Predictor
from inflate3d.targets.class_label import ClassTarget
from inflate3d.targets.mask import MaskTarget
from pydicom.uid import MRImageStorage

TARGET = MaskTarget(names=("background", "unknown", "liver", "left kidney"), ignored=("unknown",))
MODEL = "step-00000090 of " + "a/" * 30 + "run"
PATIENT = {
    **{"PatientID": "1", "PatientName": "A^B", "PatientBirthDate": "", "PatientSex": "", "StudyDate": "20260102"},
    **{"StudyTime": "101112", "StudyID": "7", "AccessionNumber": "", "ReferringPhysicianName": ""},
    **{"FrameOfReferenceUID": "1.2.9", "SeriesNumber": 3, "sop_class": MRImageStorage, "Modality": "MR"},
}


def labels_of(seg: pydicom.Dataset, series: Path) -> np.ndarray:
    """The segment number of each voxel, (Z, Y, X) as the series is read, by what each frame refers to."""
    volume = read_volume(series, orientation=None)
    heights = {}
    for file in series.iterdir():
        header = pydicom.dcmread(file)
        heights[header.SOPInstanceUID] = float(header.ImagePositionPatient[2])
    planes = sorted(heights.values())
    found = np.zeros(volume.array.shape[1:], np.uint8)
    for pixels, frame in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        number = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[planes.index(heights[source])][pixels > 0] = number
    return found


@pytest.fixture
def highdicom():
    return pytest.importorskip("highdicom", reason="pip install 'inflate3d[dicom-seg]'")


def written(folder: Path, labels_XYZ: np.ndarray, series: Path, target: MaskTarget = TARGET) -> pydicom.Dataset:
    write_dicom_seg(folder / "seg.dcm", labels_XYZ, series, target, algorithm=MODEL)
    return pydicom.dcmread(folder / "seg.dcm")


def test_labels_names_and_the_model_are_read_back(tmp_path, highdicom):
    series = write_series(tmp_path / "s", 5, step=(0, 0, -5), **PATIENT)  # the first file is the highest slice
    labels = np.random.default_rng(0).choice([0, 2, 3], size=(5, 6, 5)).astype(np.uint8)
    seg = written(tmp_path, labels, series)
    assert np.array_equal(labels_of(seg, series).transpose(2, 1, 0), np.array([0, 0, 1, 2])[labels])
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["liver", "left kidney"]
    liver, kidney = (segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence)
    assert (liver.CodeValue, liver.CodingSchemeDesignator, liver.CodeMeaning) == ("10200004", "SCT", "Liver")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in liver
    assert (kidney.CodeValue, kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning) == ("64033007", "Left")
    categories = {segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue for segment in seg.SegmentSequence}
    assert categories == {"91723000"}  # anatomical structure
    (known_by,) = seg.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence
    assert known_by.AlgorithmName == MODEL[-64:]
    assert MODEL in known_by.AlgorithmParameters
    assert (seg.StudyInstanceUID, seg.PatientID, seg.FrameOfReferenceUID) == ("1.2.3", "1", "1.2.9")


@pytest.mark.parametrize(
    ("name", "category", "kind", "side"),
    [
        ("Kidney_right", "91723000", "64033007", "Right"),
        ("left ventricle", "91723000", "87878005", None),  # a name of its own in the list
        ("white matter", "91723000", "389080008", None),
        ("tumour", "49755003", "108369006", None),
        ("Anterior", "85756007", "85756007", None),  # of what?
        ("back", "85756007", "85756007", None),  # the rear part, or the back of a body
        ("left", "85756007", "85756007", None),
        ("normal", "85756007", "85756007", None),
        ("liver 2", "85756007", "85756007", None),
        ("", "85756007", "85756007", None),
    ],
)
def test_a_name_means_what_the_lists_of_dicom_say_or_tissue(name, category, kind, side):
    meaning = meaning_of(name)
    assert (meaning.category.value, meaning.kind.value) == (category, kind)
    assert (None if meaning.side is None else meaning.side.meaning) == side


def test_the_same_labels_have_the_same_uids_and_others_have_others(tmp_path, highdicom):
    series = write_series(tmp_path / "s", 3, **PATIENT)
    labels = np.full((5, 6, 3), 2, np.uint8)
    one, again = (written(tmp_path, labels, series).SOPInstanceUID for _ in range(2))
    labels[0, 0, 0] = 3
    assert one == again != written(tmp_path, labels, series).SOPInstanceUID


def test_a_map_of_background_alone_is_written(tmp_path, highdicom):
    series = write_series(tmp_path / "s", 3, **PATIENT)
    seg = written(tmp_path, np.zeros((5, 6, 3), np.uint8), series)
    assert not seg.pixel_array.any()
    assert len(seg.SegmentSequence) == 2


def test_regions_are_written_as_the_labels_of_the_map(tmp_path, highdicom):
    whole = {"name": "whole", "labels": ["rim", "core"], "written": "rim"}
    target = MaskTarget(names=("nothing", "rim", "core"), regions=[whole, {"name": "inner", "labels": ["core"]}])
    series = write_series(tmp_path / "s", 3, **PATIENT)
    seg = written(tmp_path, np.ones((5, 6, 3), np.uint8), series, target)
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["rim", "core"]


def test_what_cannot_be_laid_over_is_refused(tmp_path, highdicom, monkeypatch):
    series = write_series(tmp_path / "s", 3, **{k: v for k, v in PATIENT.items() if k != "FrameOfReferenceUID"})
    with pytest.raises(InputError, match=r"cannot be referred to: .*Frame Of Reference UID"):
        written(tmp_path, np.ones((5, 6, 3), np.uint8), series)
    assert not (tmp_path / "seg.dcm").exists()
    with pytest.raises(InputError, match=r"a.nii.gz is no DICOM series"):
        check_dicom_inputs([series, tmp_path / "a.nii.gz"])
    with pytest.raises(InputError, match="--dicom-seg is for label maps, but this head gives 2 classes"):
        MapOptions(dicom_seg=True).checked(ClassTarget(names=("a", "b")))
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'inflate3d\[dicom-seg\]'"):
        check_dicom_inputs([series])


@pytest.mark.slow
@pytest.mark.data
def test_a_real_study_is_answered_by_segmentations_that_its_next_prediction_passes_over(
    tmp_path, highdicom, shared_data, caplog
):
    study = tmp_path / "study"
    for patient in ("P1", "P2"):
        (study / patient).mkdir(parents=True)
        for file in (shared_data / "dicom_ct").iterdir():
            header = pydicom.dcmread(file)
            header.SeriesInstanceUID = f"1.2.{patient[1]}"
            header.save_as(study / patient / file.name)
    options = {"dataset": "hippocampus", "maps": MapOptions(dicom_seg=True)}
    Predictor("tf_efficientnet_lite0_3d.v2", study, **options).write(study / "masks")
    for patient in ("P1", "P2"):
        seg = pydicom.dcmread(study / "masks" / f"{patient}.dcm")
        labels = np.asarray(nibabel.load(study / "masks" / f"{patient}.nii.gz").dataobj)
        assert np.array_equal(labels_of(seg, study / patient).transpose(2, 1, 0), labels)
        assert seg.SegmentSequence[0].SegmentAlgorithmName == "tf_efficientnet_lite0_3d.v2"
    again = Predictor("tf_efficientnet_lite0_3d.v2", study, **options)
    assert [case.key for case in again.cases] == ["P1", "P2"]
    assert "masks: 1 Segmentation Storage" in caplog.text


def test_frames_of_one_file_are_taken_in_their_own_order(tmp_path, monkeypatch):
    d = dataset(np.zeros((3, 2, 2), np.int16), 0, NumberOfFrames=3)
    d.save_as(tmp_path / "frames", enforce_file_format=True)
    monkeypatch.setattr(dicom_seg, "slices_of", lambda path: [(tmp_path / "frames", i) for i in (2, 0, 1)])
    labels = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    headers, frames = dicom_seg._on_source_frames(tmp_path, labels)
    assert len(headers) == 1
    assert frames[:, 0, 0].tolist() == [1, 2, 0]
