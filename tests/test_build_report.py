"""What a build notices of a set, and the page that shows it: true, complete, escaped, and the same each time."""

# C channel, D H W voxels along z y x.

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.contracts import AbstractDataset, AbstractTarget, Case, DatasetCard, RawSample
from inflate3d.data import Manifest, build_shards, check_shards
from inflate3d.data.shards.findings import Finding, count_kinds, read_noticed
from inflate3d.data.shards.parts import Part, merge_parts
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.reports.build_report import write_report
from inflate3d.targets.class_label import ClassTarget
from inflate3d.targets.mask import MaskTarget

SHAPE = (1, 4, 6, 8)
LABEL = {"organ": ClassTarget(("liver", "spleen"))}


def voxels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


class ToyScans(AbstractDataset):
    """Volumes that are given, by key; a key that begins with val_ is held out."""

    def __init__(self, scans: dict[str, RawSample], targets: dict[str, AbstractTarget] | None = None) -> None:
        self._scans, self._targets = scans, LABEL if targets is None else targets

    @property
    def card(self) -> DatasetCard:
        facts: dict[str, Any] = dict.fromkeys(("title", "url", "licence", "citation"), "")
        whose = {"commercial_use": True, "weights_may_be_published": True}
        return DatasetCard("scans", "volume", modality="ct", targets=self._targets, **facts, **whose)

    def cases(self) -> list[Case]:
        return [Case(key, "val" if key.startswith("val_") else "train", key) for key in self._scans]

    def read(self, case: Case) -> RawSample:
        if self._scans[case.key].image is None:
            raise InputError("scan.nii.gz: ends in the middle")
        return self._scans[case.key]

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


def usual(count: int = 8) -> dict[str, RawSample]:
    return {f"s{i}": RawSample(voxels(i), targets={"organ": i % 2}, spacing_mm=(2, 1, 1)) for i in range(count)}


def noticed(folder: Path, scans: dict[str, RawSample], targets: Any = None, **options: Any) -> list[Finding]:
    build_shards(ToyScans({**usual(), **scans}, targets), folder, progress=False, **options)
    found = read_noticed(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        ({}, []),
        ({"x": RawSample(voxels(0), targets={"organ": 0})}, [("duplicate", "x", "the image of s0 (train)")]),
        (
            {"x": RawSample(voxels(0), targets={"organ": 1})},
            [("duplicate", "x", "the image of s0 (train), but organ differs")],
        ),
        (
            {"val_x": RawSample(voxels(1), targets={"organ": 1})},
            [("in two splits", "val_x", "the image of s1 (train)")],
        ),
        ({"x": RawSample(voxels(20))}, [("unlabelled", "x", "organ is not known")]),
        (
            {"x": RawSample(voxels(20), targets={"organ": 0}, spacing_mm=(2, 1, 0.2))},
            [("outlier of spacing", "x", "spacing along W is 0.2, the median 1")],
        ),
        (
            {"x": RawSample(voxels(20), targets={"organ": 0}, spacing_mm=(2000, 1, 1))},
            [("outlier of spacing", "x", "spacing along D is 2000, the median 2")],
        ),
        (
            {"x": RawSample(voxels(20, (1, 40, 6, 8)), targets={"organ": 0})},
            [("outlier of size", "x", "size along D is 40, the median 4")],
        ),
        (
            {"x": RawSample(voxels(20), targets={"organ": 0}, noticed=(("tilted", "by 20 degrees"),))},
            [("tilted", "x", "by 20 degrees")],
        ),
        ({"x": RawSample(None)}, [("rejected", "x", "scan.nii.gz: ends in the middle")]),
    ],
)
def test_each_kind_is_found_with_its_key_and_value(
    tmp_path: Path, scans: dict[str, RawSample], expected: list[tuple[str, str, str]]
) -> None:
    for scan in scans.values():
        scan.spacing_mm = scan.spacing_mm or (2, 1, 1)
    found = noticed(tmp_path / "o", scans, max_rejects=1)
    assert [(f.kind, f.key, f.text) for f in found] == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda image: image + np.int16(1024), "0.5 % of voxels lie below"),
        (lambda image: (image // 10).astype(np.int16), "the range of the middle 99 % of voxels is 19"),
        (lambda image: image.astype(np.float32) * 1000, "the range of the middle 99 % of voxels is 1.9"),
    ],
    ids=["without its intercept", "another slope", "another unit"],
)
def test_a_volume_of_other_intensities_is_told(tmp_path: Path, change: Any, said: str) -> None:
    found = noticed(tmp_path, {"x": RawSample(change(voxels(20)), targets={"organ": 0}, spacing_mm=(2, 1, 1))})
    assert {(f.kind, f.key) for f in found} == {("outlier of intensity", "x")}
    assert said in found[0].text


def test_constant_is_said_only_where_every_voxel_is_alike(tmp_path: Path) -> None:
    almost = np.zeros((1, 1, 500, 500), np.int16)
    almost[0, 0, 0, 1] = 7  # between the voxels that a build measures
    scans = {
        "flat": RawSample(np.full(SHAPE, 5, np.int16), targets={"organ": 0}),
        "large": RawSample(np.zeros((1, 64, 256, 256), np.int16), targets={"organ": 0}),
        "almost": RawSample(almost, targets={"organ": 0}),
    }
    constant = {f.key: f.text for f in noticed(tmp_path, scans) if f.kind == "constant"}
    assert constant == {"flat": "every voxel is 5", "large": "every voxel is 0"}


def test_masks_that_show_nothing_and_classes_that_nobody_shows_are_told(tmp_path: Path) -> None:
    targets = {"parts": MaskTarget(("background", "left", "right"))}
    half = (np.arange(4 * 6 * 8) % 2).reshape(4, 6, 8).astype(np.uint8)
    masks = {**{f"s{i}": half for i in range(8)}, "none": half * 0, "val_right": half * 2}
    scans = {key: RawSample(voxels(i), targets={"parts": mask}) for i, (key, mask) in enumerate(masks.items())}
    found = noticed(tmp_path, scans, targets)
    assert [(f.kind, f.key, f.split, f.text) for f in found] == [
        ("class without samples", "", "train", "parts: right"),
        ("empty mask", "none", "train", "parts shows background alone"),
    ]


def test_a_set_without_targets_is_said_once(tmp_path: Path) -> None:
    scans = {f"s{i}": RawSample(voxels(i)) for i in range(8)}
    assert [(f.kind, f.key) for f in noticed(tmp_path, scans, {})] == [("unlabelled", "")]


def test_the_worst_comes_first_and_what_readers_told_of_few_before_what_holds_for_many(tmp_path: Path) -> None:
    turned = {f"s{i}": RawSample(voxels(i), targets={"organ": 0}, noticed=(("reoriented", "x"),)) for i in range(8)}
    scans = {
        **turned,
        "bad": RawSample(None),
        "tilt": RawSample(voxels(30), targets={"organ": 1}, noticed=(("tilted", "y"), ("reoriented", "x"))),
        "val_s0": RawSample(voxels(0), targets={"organ": 0}),
    }
    found = noticed(tmp_path, scans, max_rejects=1)
    assert list(count_kinds(found).items()) == [("rejected", 1), ("in two splits", 1), ("tilted", 1), ("reoriented", 9)]


def test_a_sample_of_which_nothing_is_noticed_has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    facts = (("tilted", "by 3 degrees"),)
    plain, told = (RawSample(voxels(0), targets={"organ": 0}, noticed=n) for n in ((), facts))
    for name, scan in (("a", plain), ("b", told)):
        build_shards(ToyScans({"s": scan}), tmp_path / name, progress=False)
    assert b'"noticed"' not in (tmp_path / "a" / "train-000000.tar").read_bytes()
    assert b'"noticed": [["tilted", "by 3 degrees"]]' in (tmp_path / "b" / "train-000000.tar").read_bytes()


TOLD = {f"s{i}": RawSample(voxels(i % 5), targets={"organ": i % 2}, noticed=(("tilted", f"{i}"),)) for i in range(12)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_parts_and_a_restarted_build_tell_the_same_as_one_build(tmp_path: Path) -> None:
    dataset = ToyScans(TOLD)
    build_shards(dataset, tmp_path / "whole", progress=False, max_samples_per_shard=4)
    whole = read_noticed(tmp_path / "whole")
    assert whole is not None
    assert count_kinds(whole) == {"duplicate": 7, "tilted": 12}
    for number in (2, 1, 3):
        build_shards(dataset, tmp_path / "parts", progress=False, max_samples_per_shard=4, part=Part(number, 3))
    merge_parts(tmp_path / "parts")
    assert read_noticed(tmp_path / "parts") == whole
    write_report(tmp_path / "whole")
    first = contents(tmp_path / "whole")
    (tmp_path / "whole" / "train-000001.tar").unlink()
    build_shards(dataset, tmp_path / "whole", progress=False, max_samples_per_shard=4)
    write_report(tmp_path / "whole")
    assert contents(tmp_path / "whole") == first
    assert check_shards(tmp_path / "whole") == []


def test_what_lies_in_a_part_beside_its_shards_stays(tmp_path: Path) -> None:
    for number in (1, 2):
        build_shards(ToyScans(TOLD), tmp_path, progress=False, part=Part(number, 2))
    own = Part(1, 2).folder(tmp_path) / "notes.txt"
    own.write_text("of the user")
    merge_parts(tmp_path)
    assert own.read_text() == "of the user"
    assert [path.name for path in own.parent.iterdir()] == ["notes.txt"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [own.parent.name]


def test_parts_are_not_merged_over_shards_of_another_build(tmp_path: Path) -> None:
    for number in (1, 2):
        build_shards(ToyScans(TOLD), tmp_path, progress=False, part=Part(number, 2))
    (tmp_path / "train-000001.tar").write_bytes(b"of an unfinished build")
    with pytest.raises(InputError, match=r"train-000001\.tar: is not of these parts"):
        merge_parts(tmp_path)
    assert (tmp_path / "train-000001.tar").read_bytes() == b"of an unfinished build"


@pytest.mark.parametrize("name", ["notes.txt", ".tmp-notes", "train-000000.tar.bak", "reports/x"])
def test_a_folder_with_files_of_somebody_is_refused_and_they_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of the user")
    with pytest.raises(InputError, match=f"holds something else .{re.escape(name.partition('/')[0])}"):
        build_shards(ToyScans(TOLD), tmp_path, progress=False)
    assert (tmp_path / name).read_text() == "of the user"


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def test_the_page_stands_alone_and_what_files_say_is_text(tmp_path: Path) -> None:
    scans = {f"s{i}": RawSample(voxels(i), targets={"organ": 0}, noticed=((HOSTILE, HOSTILE),)) for i in range(3)}
    build_shards(ToyScans(scans, {"organ": ClassTarget((HOSTILE, "spleen"))}), tmp_path, progress=False)
    write_report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags}
    assert all(values["src"].startswith("data:image/") for tag, values in page.tags if tag == "img")  # type: ignore[union-attr]
    assert not any(name.startswith("on") for _, values in page.tags for name in values)
    assert not any(tag in ("link", "iframe", "object") for tag, _ in page.tags)
    assert page.text.count(HOSTILE) >= 6


@pytest.mark.parametrize("kind", ["volume_segmentation", "video_classification", "volume_targets"])
def test_every_medium_is_shown_its_own_way(tmp_path: Path, kind: str) -> None:
    toy = Toy(kind=kind, num_train=4, num_val=2, size=16)
    build_shards(toy, tmp_path, progress=False)
    write_report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert sum(tag == "figure" for tag, _ in page.tags) == 6
    pictures = sum(tag == "img" for tag, _ in page.tags)
    assert pictures == 6 * (4 if kind.startswith("video") else 3)
    assert all(case.key in page.text for case in toy.cases())


def test_a_large_set_has_a_small_page_and_keeps_every_fact(tmp_path: Path) -> None:
    image = voxels(0)
    scans = {f"s{i:03d}": RawSample(image, targets={"organ": 0}, noticed=(("tilted", "x" * 900),)) for i in range(90)}
    build_shards(ToyScans(scans), tmp_path, progress=False)
    assert len(write_report(tmp_path)) == 89 + 90 + 1
    page = Page((tmp_path / "report.html").read_text())
    assert sum(tag == "figure" for tag, _ in page.tags) == 60
    assert (tmp_path / "report.html").stat().st_size < 400_000
    assert "and 70 more, all in noticed.jsonl" in page.text
    assert len((tmp_path / "noticed.jsonl").read_text().splitlines()) == 180


def test_the_command_says_shortly_what_was_noticed_and_can_say_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "toy"
    arguments = ["--kind", "volume_classification", "--num_train", "4", "--num_val", "1"]
    assert main(["shards", "build", "toy", *arguments, "--output", str(folder), "--num_workers", "0"]) == 0
    built = capsys.readouterr().out
    assert f"look at it before training: {folder}/report.html" in built
    assert re.search(r"noticed +samples +such as\n", built)
    before = contents(folder)
    for name in ("noticed.jsonl", "report.html"):
        (folder / name).unlink()
    assert main(["shards", "info", str(folder)]) == 0
    assert f"platform shards report {folder} " in " ".join(capsys.readouterr().out.split()) + " "
    assert main(["shards", "report", str(folder)]) == 0
    assert contents(folder) == before


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"kind": 3, "key": "", "split": "", "text": ""}', b'{"kind": "x"}', b"\xff"]
)
def test_a_damaged_list_of_what_was_noticed_names_the_line(tmp_path: Path, line: bytes) -> None:
    good = json.dumps({"kind": "tilted", "key": "a", "split": "train", "text": "by 1"}).encode()
    (tmp_path / "noticed.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=r"noticed\.jsonl:2: is no line that a build writes.*platform shards report"):
        read_noticed(tmp_path)


def test_a_report_of_remote_shards_is_refused() -> None:
    with pytest.raises(InputError, match="copy them to a local folder"):
        write_report("https://host/set")


def test_a_report_does_not_change_what_training_knows_a_set_by(tmp_path: Path) -> None:
    before = build_shards(ToyScans(TOLD), tmp_path, progress=False).digest
    write_report(tmp_path)
    assert Manifest.load(tmp_path).digest == before


def test_a_check_of_shards_sees_that_what_was_noticed_was_changed(tmp_path: Path) -> None:
    build_shards(ToyScans(TOLD), tmp_path, progress=False)
    path = tmp_path / "noticed.jsonl"
    content = path.read_bytes()
    for change in (content[: len(content) // 2], content.replace(b"tilted", b"titled"), b"", content + b"{"):
        path.write_bytes(change)
        (fault,) = check_shards(tmp_path)
        assert fault.startswith(f"{path}")
        assert f"platform shards report {tmp_path}" in fault
    path.unlink()  # as an older version left it
    assert check_shards(tmp_path) == []
