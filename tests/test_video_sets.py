"""Published sets of clips: official lists, splits, groups and classes, and what is refused by line."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from inflate3d.data.raw.examples import clip
from inflate3d.data.raw.labelled_videos import LabelledVideos
from inflate3d.datasets.diving48 import Diving48
from inflate3d.datasets.hmdb51 import HMDB51
from inflate3d.datasets.kinetics import Kinetics
from inflate3d.datasets.ssv2 import SSV2
from inflate3d.datasets.ucf101 import UCF101
from inflate3d.errors import InputError


def refused(dataset: LabelledVideos) -> str:
    with pytest.raises(InputError) as caught:
        dataset.cases()
    return str(caught.value)


def labels(dataset: LabelledVideos) -> dict[str, str]:
    names = dataset.card.targets["label"].names
    return {case.key: names[case.source[1]] for case in dataset.cases()}


# -------------------------------------------------------------------------------------------------------------- UCF101


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    UCF101.write_example(tmp_path)
    return tmp_path


def test_ucf101_keeps_the_official_test_list_and_takes_val_by_whole_groups(ucf: Path) -> None:
    dataset = UCF101(ucf, val_fraction=0.5)
    parts = defaultdict(set)
    for case in dataset.cases():
        parts[case.split].add(case.key[:-4])
    assert parts["test"] == {"v_ApplyEyeMakeup_g03", "v_Archery_g03"}
    assert not parts["train"] & parts["val"]
    assert Counter(c.split for c in dataset.cases()) == {"train": 4, "val": 4, "test": 4}
    assert labels(dataset)["v_Archery_g01_c02"] == "Archery"


def test_ucf101_reads_each_of_its_splits(ucf: Path) -> None:
    lists = ucf / "ucfTrainTestlist"
    (lists / "trainlist02.txt").write_text("Archery/v_Archery_g03_c01.avi 2\nArchery/v_Archery_g02_c01.avi 2\n")
    (lists / "testlist02.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    found = {c.key: c.split for c in UCF101(ucf, split=2, val_fraction=0).cases()}
    assert found == {"v_Archery_g03_c01": "train", "v_Archery_g02_c01": "train", "v_Archery_g01_c01": "test"}
    with pytest.raises(InputError, match=r"no file .*trainlist03.txt"):
        UCF101(ucf, split=3)
    with pytest.raises(InputError, match="split is 4; the official ones are 1, 2 and 3"):
        UCF101(ucf, split=4)


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("trainlist01.txt", "Archery/v_Archery_g01_c01.avi 1", "line 9: 'Archery/v_Archery_g01_c01.avi 1' disagrees"),
        ("trainlist01.txt", "Acrobat/v_Acrobat_g01_c01.avi 1", "disagrees with classInd.txt on the class 'Acrobat'"),
        ("trainlist01.txt", "v_Archery_g01_c01.avi 2", "expected CLASS/v_CLASS_g01_c01.avi"),
        ("testlist01.txt", "Archery/v_Archery_g01_c01.avi", "stands in"),
        ("classInd.txt", "4 Basketball", "classInd.txt line 3: '4 Basketball'; expected '3 NameOfClass'"),
        ("classInd.txt", "3 Archery", "classInd.txt line 3: '3 Archery'"),
    ],
)
def test_ucf101_lines_that_are_wrong_are_named(ucf: Path, file: str, line: str, words: str) -> None:
    path = ucf / "ucfTrainTestlist" / file
    path.write_text(path.read_text() + line + "\n")
    assert words in refused(UCF101(ucf))


def test_a_listed_clip_without_a_file_is_rejected_or_left_out_as_asked(
    ucf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (ucf / "UCF-101/Archery/v_Archery_g01_c01.avi").unlink()
    whole = UCF101(ucf)
    case = next(c for c in whole.cases() if c.key == "v_Archery_g01_c01")
    with pytest.raises(InputError, match=r"v_Archery_g01_c01: no file"):
        whole.read(case)
    with caplog.at_level(logging.WARNING):
        assert len(UCF101(ucf, skip_missing=True).cases()) == 11
    assert "ucf101: 1 of 12 clips have no file and are left out" in caplog.text


# -------------------------------------------------------------------------------------------------------------- HMDB51


def test_hmdb51_uses_ones_for_training_twos_for_testing_and_leaves_out_zeros(tmp_path: Path) -> None:
    dataset = HMDB51(**HMDB51.write_example(tmp_path))
    cases = dataset.cases()
    assert Counter(c.split == "test" for c in cases) == {False: 6, True: 2}
    assert {(c.split, c.source[1]) for c in cases} == {(split, i) for split in ("train", "val", "test") for i in (0, 1)}
    assert not any(c.key.endswith("goo_4") for c in cases)
    assert {c.group for c in cases if c.split != "test"} == {"Film_b0", "Film_b1", "Film_c0", "Film_c1"}
    assert labels(dataset)["Film_c0_cartwheel_u_nm_np1_ba_goo_0"] == "cartwheel"


def test_hmdb51_lines_and_lists_that_are_wrong_are_named(tmp_path: Path) -> None:
    HMDB51.write_example(tmp_path)
    with pytest.raises(InputError, match=r"has no testTrainMulti_7030_splits/\*_test_split2.txt"):
        HMDB51(tmp_path, split=2).cases()
    file = tmp_path / "testTrainMulti_7030_splits/brush_hair_test_split1.txt"
    file.write_text(file.read_text() + "a_brush_hair_b.avi 3\n")
    assert "brush_hair_test_split1.txt line 6: 'a_brush_hair_b.avi 3'; expected" in refused(HMDB51(tmp_path))


# ------------------------------------------------------------------------------------------------------------ Kinetics


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    Kinetics.write_example(tmp_path)
    return tmp_path


def test_kinetics_finds_clips_by_class_by_split_or_in_one_folder(kinetics: Path) -> None:
    before = {c.key: (c.split, c.source[1]) for c in Kinetics(kinetics).cases()}
    flat = kinetics / "videos_val"
    flat.mkdir()
    for file in list((kinetics / "val").rglob("*.mp4")):
        file.rename(flat / file.name)
    for name in ("train.csv", "val.csv"):
        (kinetics / "annotations" / name).rename(kinetics / name)
    (kinetics / "val.csv").rename(kinetics / "validate.csv")
    dataset = Kinetics(kinetics)
    assert {c.key: (c.split, c.source[1]) for c in dataset.cases()} == before
    assert len(before) == 6
    assert dataset.read(dataset.cases()[-1]).video
    assert dataset.card.targets["label"].names == ("abseiling", "air drumming")


def test_kinetics_versions_have_their_name_and_citation(kinetics: Path) -> None:
    card = Kinetics(kinetics, version=700).card
    assert card.name == "kinetics700"
    assert "2010.10864" in card.citation
    assert not card.weights_may_be_published
    with pytest.raises(InputError, match="version is 500; allowed: 400, 600, 700"):
        Kinetics(kinetics, version=500)


def test_kinetics_refuses_lists_of_more_classes_than_the_version_has(kinetics: Path) -> None:
    rows = "".join(f"class {i},id{i},0,10,train\n" for i in range(401))
    (kinetics / "annotations/train.csv").write_text("label,youtube_id,time_start,time_end,split\n" + rows)
    assert "the lists hold 403 classes, Kinetics-400 has 400" in refused(Kinetics(kinetics))


def test_kinetics_without_a_val_list_takes_val_from_train_by_video(kinetics: Path) -> None:
    (kinetics / "annotations/val.csv").unlink()
    cases = Kinetics(kinetics, val_fraction=0.5).cases()
    assert Counter(c.split for c in cases) == {"train": 2, "val": 2}


def test_kinetics_clips_that_are_there_twice_or_lists_that_lack_are_named(kinetics: Path) -> None:
    file = next((kinetics / "train").rglob("*.mp4"))
    (kinetics / "copy").mkdir()
    (kinetics / "copy" / file.name).write_bytes(file.read_bytes())
    assert f"2 files are the clip {file.stem}" in refused(Kinetics(kinetics))
    (kinetics / "train.csv").write_text("a.mp4 0\n")
    assert "train.csv list the train clips; keep one" in refused(Kinetics(kinetics))
    (kinetics / "annotations/train.csv").unlink()
    assert "train.csv line 1: expected a header with label, youtube_id" in refused(Kinetics(kinetics))


# -------------------------------------------------------------------------------------------- Something-Something V2


def test_ssv2_takes_classes_by_number_and_templates_without_brackets(tmp_path: Path) -> None:
    dataset = SSV2(**SSV2.write_example(tmp_path))
    assert dataset.card.targets["label"].names == ("Closing something", "Opening something")
    assert labels(dataset)["101"] == "Opening something"
    assert {c.key: c.split for c in dataset.cases()} == {
        **dict.fromkeys(("100", "101", "102", "103"), "train"),
        **dict.fromkeys(("104", "105"), "val"),
        "106": "test",
    }
    table = {"Opening something": "0", "Closing something": "1"}
    (tmp_path / "labels/labels.json").write_text(json.dumps(table))
    assert dataset.card.targets["label"].names != SSV2(tmp_path).card.targets["label"].names
    assert labels(SSV2(tmp_path)) == labels(dataset)


def test_ssv2_reads_the_names_of_the_first_release_and_needs_no_answers(tmp_path: Path) -> None:
    SSV2.write_example(tmp_path)
    for file in list((tmp_path / "labels").iterdir()):
        if file.suffix == ".json":
            file.rename(tmp_path / f"something-something-v2-{file.name}")
    (tmp_path / "labels/test-answers.csv").unlink()
    assert Counter(c.split for c in SSV2(tmp_path).cases()) == {"train": 4, "val": 2}


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("labels.json", {"Opening something": "0", "Closing something": "2"}, "numbers from 0, without gaps"),
        ("train.json", [{"id": "100", "template": "Lifting [something]"}], "entry 1: 'Lifting something' is no class"),
        ("train.json", [{"id": "100"}], "entry 1 is {'id': '100'}; expected id and template"),
        ("train.json", {"id": "100"}, "holds a dict; expected a JSON list"),
    ],
)
def test_ssv2_lists_that_are_wrong_are_named(tmp_path: Path, file: str, content: object, words: str) -> None:
    SSV2.write_example(tmp_path)
    (tmp_path / "labels" / file).write_text(json.dumps(content))
    assert words in refused(SSV2(tmp_path))


# ------------------------------------------------------------------------------------------------------------ Diving48


def test_diving48_keeps_its_test_list_and_videos_stay_in_one_split(tmp_path: Path) -> None:
    dataset = Diving48(**Diving48.write_example(tmp_path))
    cases = dataset.cases()
    assert {c.key for c in cases if c.split == "test"} == {"-mmq0PT-u3_00006", "-mmq0PT-u3_00007"}
    assert dataset.card.targets["label"].names == ("Back 15som 05Twis FREE", "Forward 25som NoTwis PIKE")
    splits = defaultdict(set)
    for case in cases:
        splits[case.key[:-6]].add(case.split)
    assert all(len(found) == 1 for found in splits.values())


def test_diving48_entries_that_are_wrong_are_named(tmp_path: Path) -> None:
    Diving48.write_example(tmp_path)
    (tmp_path / "Diving48_V2_test.json").write_text(json.dumps([{"vid_name": "a_0", "label": 2}]))
    assert "Diving48_V2_test.json entry 1: label is 2; expected 0 to 1" in refused(Diving48(tmp_path))
    (tmp_path / "Diving48_V2_test.json").write_text(json.dumps([{"vid_name": "a_0", "label": 1}]))
    dataset = Diving48(tmp_path)
    with pytest.raises(InputError, match=r"no file .*a_0"):
        dataset.read(dataset.cases()[-1])


def test_files_of_other_programs_are_no_clips(kinetics: Path) -> None:
    before = [c.key for c in Kinetics(kinetics).cases()]
    file = next((kinetics / "train").rglob("*.mp4"))
    (file.parent / f"._{file.name}").write_bytes(b"left by macOS")
    (kinetics / ".cache").mkdir()
    (kinetics / ".cache" / file.name).write_bytes(clip(brightens=True))
    assert [c.key for c in Kinetics(kinetics).cases()] == before
