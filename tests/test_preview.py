"""Raw cases drawn before any shard is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from inflate3d.cli.main import main
from nightly import slow_but

KINDS = ("volume_segmentation", "volume_classification", "video_classification", "volume_targets")


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
