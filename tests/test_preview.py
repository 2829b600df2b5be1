"""Sets as one sees them before training: raw cases and finished shards, as a picture, a page, a list and in words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inflate3d.cli.main import main
from inflate3d.contracts import AbstractDataset, Case, DatasetCard, RawSample, medium_of
from inflate3d.data.shards.findings import known_words
from inflate3d.data.shards.glimpse import RawGlimpse, ShardGlimpse
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.reports.preview_page import write_preview
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget
from nightly import slow_but
from toy_batches import ToyScans, toy_card

KINDS = ("volume_segmentation", "volume_classification", "video_classification", "volume_targets")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two sets of shards: of every target, and of a mask."""
    root = tmp_path_factory.mktemp("root")
    build_shards(ToyScans(toy_card("scans")), root / "scans", progress=False)
    build_shards(Toy(num_train=3, num_val=2, size=16), root / "balls", progress=False)
    return root


@pytest.mark.parametrize("kind", slow_but(KINDS, 1))
def test_every_kind_is_drawn(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from matplotlib.image import imread

    path = tmp_path / "preview.png"
    assert main(["datasets", "preview", "toy", "--kind", kind, "--output", str(path), "--num_samples", "2"]) == 0
    assert str(path) in capsys.readouterr().out
    picture = imread(path)
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.05


def test_an_unknown_argument_is_answered_with_the_close_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "preview", "toy", "--knd", "x"]) == 2
    assert "unknown argument 'knd'; close names: 'kind'" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- glimpses


def test_raw_cases_and_their_shards_look_the_same(root: Path) -> None:
    raw, stored = RawGlimpse(ToyScans(toy_card("scans")), 3), ShardGlimpse(root / "scans", 3)
    assert raw.splits == stored.splits == {"train": 2, "val": 2}
    for one, other in zip(raw.cases(), stored.cases(), strict=True):
        assert (one.key, one.split, one.record) == (other.key, other.split, other.record)
        np.testing.assert_array_equal(one.raw.image, other.raw.image)
        for name, value in one.raw.targets.items():
            np.testing.assert_array_equal(value, other.raw.targets[name])


def test_the_page_of_shards_shows_what_is_in_them_and_is_the_same_each_time(root: Path, tmp_path: Path) -> None:
    pages = [
        write_preview([ShardGlimpse(root / "scans", 2)], tmp_path / name).read_text() for name in ("a.html", "b.html")
    ]
    assert pages[0] == pages[1]
    text = re.sub(r"<[^>]+>", " ", pages[0])
    assert "2 of 4 are drawn" in text
    assert "licence mit" in text.lower()
    assert re.search(r"age: 20; .*|.*age: 20\b", text)
    assert pages[0].count("data:image/jpeg;base64,") == 2 * 3  # a slice along each axis
    assert "http" not in re.sub(r"https://x\.y", "", pages[0])  # nothing is fetched
    # Classes in turn: of the two that were measured, the first two classes once each.
    rows = re.findall(r"<td>(background|left part|right)</td><td class=.n.>(\d+)</td>", pages[0])
    assert rows[:3] == [("background", "1"), ("left part", "1"), ("right", "0")]


def test_several_sets_share_a_page_and_a_picture(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["datasets", "preview", str(root), "--output", str(page), "--num_samples", "1"]) == 0
    text = page.read_text()
    assert "2 sets" in text
    assert [f'id="set-{i}"' in text for i in (1, 2, 3)] == [True, True, False]
    assert f"page: {page}" in capsys.readouterr().out


def test_shards_are_listed_and_shown(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets", "list", "--root", str(root)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:6] for row in rows[1:]] == [
        ["toy_segmentation", "3", "train,", "2", "val", rows[1][5]],
        ["scans", "2", "train,", "2", "val", rows[2][5]],
    ]
    assert main(["datasets", "show", str(root / "scans")]) == 0
    shown = capsys.readouterr().out
    assert "class samples: background 1, left part 1, right 0" in shown
    assert "medians over volumes: p0.5 " in shown
    assert main(["shards", "info", str(root / "scans")]) == 0
    assert capsys.readouterr().out == shown


def test_what_cannot_be_looked_at_is_named_with_the_remedy(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one" / "torn").mkdir(parents=True)
    (tmp_path / "one" / "torn" / "manifest.json").write_text("{")
    for arguments, told in (
        (["list", "--root", str(tmp_path / "empty")], "empty holds no manifest.json, nor do the folders in it"),
        (["list", "--root", str(root), str(tmp_path / "one")], "torn/manifest.json: damaged"),
        (["show", str(tmp_path / "absent")], "absent holds no manifest.json, and is no folder"),
        (["preview", str(root), "toy"], "'toy' is no folder of shards; give one name, or folders alone"),
        (["preview", str(root), "--kind", "x"], "unknown argument 'kind'"),
        (["preview", str(root), "--num_samples", "0"], "num_samples is 0; give 1 or more"),
        (["preview", str(root), "--output", str(tmp_path / "no" / "x.html")], "the folder"),
    ):
        assert main(["datasets", *arguments]) == 2
        assert told in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- digits, and doubles


def test_numbers_have_as_many_digits_as_a_person_reads() -> None:
    card = toy_card(size=ValueTarget("ml"), organ=ClassTarget(("liver", "spleen")))
    assert known_words(card, {"size": 6.500003353140597, "organ": 1}) == "size: 6.5; organ: spleen"
    assert known_words(card, {"size": None, "organ": None}) == "size: not known; organ: not known"
    assert ValueTarget("ml", low=0).describe() == "a number in ml from 0"


class Pictured(AbstractDataset):
    """One volume, which is given."""

    def __init__(self, image: np.ndarray, **targets: Any) -> None:
        self._image, self._targets = image, targets

    @property
    def card(self) -> DatasetCard:
        return toy_card("one", mask=MaskTarget(("background", "lesion")), size=ValueTarget("ml"))

    def cases(self) -> list[Case]:
        return [Case("k", "train", 0)]

    def read(self, case: Case) -> RawSample:
        return RawSample(self._image, targets=self._targets)

    @classmethod
    def write_example(cls, root: Path) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("labelled", "count"), [(True, 6), (False, 5)])
def test_no_picture_is_drawn_twice_where_there_is_no_mask(
    labelled: bool, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inflate3d.evaluation.pictures import preview

    kept: list[Any] = []
    monkeypatch.setattr(preview, "save_figure", lambda figure, path: kept.append(figure))
    image = np.random.default_rng(0).integers(0, 255, (1, 1, 6, 6)).astype(np.uint8)  # one slice: its maximum is itself
    mask = np.zeros((1, 6, 6), np.uint8)
    mask[0, 2:4, 3:5] = labelled
    preview.draw_preview([RawGlimpse(Pictured(image, mask=mask, size=6.500003353140597), 1)], tmp_path / "x.png")
    drawn = [[picture.get_array().data.tobytes() for picture in axes.images] for axes in kept[0].axes if axes.images]
    assert len(drawn) == count
    assert len({tuple(pictures) for pictures in drawn}) == count
    (title,) = [t.get_text() for axes in kept[0].axes for t in axes.texts if "train k" in t.get_text()]
    assert "size: 6.5 ml" in title


def test_a_short_clip_shows_each_frame_once() -> None:
    clip = Toy(kind="video_classification", num_train=1, num_val=1, size=16, num_frames=4)
    medium, raw = medium_of(clip.card), clip.read(clip.cases()[0])
    image = medium.raw_image(raw, 6)
    assert image.shape[1] == 4
    assert [plane.index for plane in medium.planes(image, 6, spacing_mm=(1, 1, 1))] == [0, 1, 2, 3]
