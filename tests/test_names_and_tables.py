"""Keys keep every letter and stay apart; tables are read as spreadsheets write them; a wrong row is named by line."""

from __future__ import annotations

import io
import json
import os
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.data.raw.files import read_json, stem
from inflate3d.data.raw.keys import MOST_BYTES, case_keys, file_names, is_key, key_of
from inflate3d.data.raw.tables import read_table
from inflate3d.data.raw.text import read_lines, read_text
from inflate3d.data.shards.manifest import Manifest
from inflate3d.data.shards.reader import ShardReader
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.volume_csv import VolumeCSV
from inflate3d.errors import InputError

# ----------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("liver_1-a", "liver_1-a"),
        ("Müller 1 (links)", "Müller_1__links_"),
        ("视频一", "视频一"),
        ("Пациент.7", "Пациент_7"),
        ("رأس", "رأس"),
        ("दिमाग", "दिमाग"),
        ("뇌영상", "뇌영상"),
        ("e\u0301te\u0301", "été"),
        ("a/b.c", "a_b_c"),
        ("scan😀", "scan_"),
        ("1.2.840.10008", "1_2_840_10008"),
    ],
)
def test_a_key_keeps_every_letter_in_nfc_and_nothing_else(name: str, key: str) -> None:
    assert key_of(name) == key
    assert is_key(key)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=6, unique=True))
def test_keys_of_any_names_are_valid_and_unique(names: list[str]) -> None:
    keys = case_keys(names, where="a list")
    assert len(set(keys)) == len(names)
    assert all(is_key(key) and len(key.encode()) <= MOST_BYTES for key in keys)
    assert all(unicodedata.is_normalized("NFC", key) for key in keys)
    assert keys == case_keys(names, where="a list")


def test_names_that_give_one_key_are_told_apart_whatever_their_order() -> None:
    names = ["a b", "a_b", "c"]
    first, second, third = case_keys(names, where="x")
    assert first != second
    assert first.startswith("a_b-")
    assert second.startswith("a_b-")
    assert third == "c"
    assert case_keys(names[::-1], where="x") == [third, second, first]
    with pytest.raises(InputError, match="x: 'c' is listed twice"):
        case_keys(["c", "d", "c"], where="x")
    with pytest.raises(InputError, match="empty name"):
        case_keys([""], where="x")


@pytest.mark.parametrize("text", ["", "a.b", "a/b", "e\u0301", "a b", "x" * (MOST_BYTES + 1), "\udcff", "a\n"])
def test_what_is_no_key(text: str) -> None:
    assert not is_key(text)


def test_file_names_take_folders_only_where_stems_repeat() -> None:
    assert file_names(["p1/a.nii.gz", "p2/b.nii"]) == ["a", "b"]
    assert file_names(["p1/image.nii.gz", "./p2/image.nii.gz"]) == ["p1-image", "p2-image"]
    assert file_names(["a.nii", "a.nrrd"]) == ["a.nii", "a.nrrd"]
    assert file_names(["1.2.840.1", "1.2.840.2"]) == ["1.2.840.1", "1.2.840.2"]
    assert stem("1.2.840.1") == "1.2.840.1"


def test_webdataset_reads_samples_with_keys_of_any_script(tmp_path: Path) -> None:
    names = ["视频一", "视频二", "Müller 1", "patient.1"]
    for name in names:
        np.save(tmp_path / f"{name}.npy", np.full((2, 3, 4), len(name), np.uint8))
    (tmp_path / "cases.csv").write_text("image\n" + "".join(f"{name}.npy\n" for name in names), encoding="utf-8")
    build_shards(VolumeCSV(tmp_path, modality="mri", val_fraction=0), tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    expected = {"视频一", "视频二", "Müller_1", "patient_1"}
    found = {sample["__key__"]: sample for sample in wds.WebDataset(str(tar), shardshuffle=False)}
    assert set(found) == expected
    assert np.load(io.BytesIO(found["视频一"]["image.npy"]))[0, 0, 0, 0] == 3
    with tarfile.open(tar) as file:
        assert {name.split(".")[0] for name in file.getnames()} == expected
    reader = ShardReader(tmp_path / "out", Manifest.load(tmp_path / "out"), "train")
    keys = [reader.sample(0, i).key for i in range(len(names))]
    assert set(keys) == expected


# --------------------------------------------------------------------------------------------------------------- tables

ROWS = [{"image": "a b.nii", "label": "grade I"}, {"image": "ü.nii", "label": 'say "x"'}]
CSV = 'image,label\na b.nii,grade I\nü.nii,"say ""x"""\n'


def table(tmp_path: Path, content: str | bytes, **options: object) -> list[dict[str, str]]:
    path = tmp_path / "cases.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, **{"required": ("image",), **options})  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_tables_of_spreadsheets_are_one_table(tmp_path: Path, encoding: str, separator: str, newline: str) -> None:
    text = CSV.replace(",", separator).replace("\n", newline)
    assert table(tmp_path, text.encode(encoding)) == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\n" + CSV.replace(",", ";"),
        "\n\n" + CSV + "\n , \n",
        CSV.replace("\n", ",,\n"),
        'image,"label"\n"a b.nii","grade I"\n ü.nii ,"say ""x"""',
    ],
)
def test_harmless_variants_are_the_same_table(tmp_path: Path, text: str) -> None:
    assert table(tmp_path, text) == ROWS


def test_channels_may_be_joined_by_semicolons_beside_any_separator(tmp_path: Path) -> None:
    assert table(tmp_path, "image,label\na;b,x\n")[0]["image"] == "a;b"
    assert table(tmp_path, 'image;label\n"a;b";x\n')[0] == {"image": "a;b", "label": "x"}
    assert table(tmp_path, "image\na;b\n") == [{"image": "a;b"}]


def test_rows_know_their_line_and_may_lack_a_header(tmp_path: Path) -> None:
    rows = table(tmp_path, 'image,note\na,"two\nlines"\n\nb,x\n')
    assert [row.line for row in rows] == [2, 5]  # type: ignore[attr-defined]
    plain = table(tmp_path, "a;1\nb;2\n", required=("path",), unnamed=("path", "label"))
    assert plain == [{"path": "a", "label": "1"}, {"path": "b", "label": "2"}]
    named = table(tmp_path, "label,path\n1,a\n", required=("path",), unnamed=("path", "label"))
    assert named == [{"path": "a", "label": "1"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"image,label\na,M\xfcller\n", "line 2: the byte 0xfc is not utf-8 text; save it as UTF-8, or state its enc"),
        (CSV.encode("utf-16-le"), "line 1: holds a NUL byte"),
        (b"image,label\na,\0\n", "line 2: holds a NUL byte"),
        (b'image,label\na,"x\nb,y\n', "line 2: .*quote a value as a whole"),
        (b'image,label\na,"x" y\n', "line 2: .*quote a value as a whole"),
        (b"image,label\na,x\nb\n", "line 3: 1 values for 2 columns"),
        (b"image,label\na,x,y\n", "line 2: 3 values for 2 columns"),
        (b"image,label,label\na,x,y\n", "the column 'label' is there twice"),
        (b"a.nii,x\nb.nii,y\n", "no column 'image'; its first line is .* which must name the columns"),
        (b"", "no column 'image'"),
        (b"image,label\n", "lists no cases"),
        (b"image,\na,x\n", "unknown column ''"),
    ],
)
def test_a_table_that_cannot_be_read_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        table(tmp_path, content, allowed=("image", "label"))
    assert "cases.csv" in str(caught.value)


def test_an_encoding_without_a_mark_is_taken_only_where_it_is_stated(tmp_path: Path) -> None:
    assert table(tmp_path, CSV.encode("cp1252"), encoding="cp1252") == ROWS
    assert table(tmp_path, CSV.encode("utf-16-le"), encoding="utf-16-le") == ROWS
    assert table(tmp_path, CSV.encode("utf-8-sig"), encoding="cp1252") == ROWS  # the mark decides
    with pytest.raises(InputError, match="unknown encoding 'cp99999'"):
        table(tmp_path, CSV, encoding="cp99999")


def test_lines_count_as_an_editor_counts_them(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("a\u2028b 1\r\n\r\n c 2\rd 3".encode("utf-16"))
    assert read_lines(path) == [(1, "a\u2028b 1"), (3, "c 2"), (4, "d 3")]


def test_an_unreadable_table_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "a").touch(mode=0)
    if (child := os.fork()) == 0:  # a process that may become nobody, since root reads everything
        if os.geteuid() == 0:
            os.setuid(65534)
        try:
            with pytest.raises(InputError, match="cannot be read: Permission denied"):
                read_text(tmp_path / "a")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.json").write_bytes(json.dumps({"ü": 1}, ensure_ascii=False, indent=1).encode(encoding))
    assert read_json(tmp_path / "a.json", where="x") == {"ü": 1}
    (tmp_path / "a.json").write_bytes(b'{"a": 1, "a": 2}')
    with pytest.raises(InputError, match="'a' is there twice"):
        read_json(tmp_path / "a.json", where="x")
