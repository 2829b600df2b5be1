"""Meshes: OFF files as they are found, and the voxels that they fill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from inflate3d.data.raw.meshes import read_off, voxelised
from inflate3d.datasets.modelnet40 import ModelNet40
from inflate3d.errors import InputError

TETRAHEDRON = "4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


@pytest.mark.parametrize(
    "text",
    [
        "OFF\n" + TETRAHEDRON,
        "OFF" + TETRAHEDRON,
        "# made by hand\nOFF # its name\n\n" + TETRAHEDRON.replace("3 1 2 3", "3 1 2 3 255 0 0"),
    ],
    ids=["counts below", "counts beside", "comments and colours"],
)
def test_a_file_is_read_as_it_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.off").write_text(text)
    vertices, faces = read_off(tmp_path / "a.off")
    np.testing.assert_array_equal(vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(faces, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ply\n", "begins with 'ply"),
        ("OFF\n" + TETRAHEDRON[:-8], "3 of 4 faces"),
        ("OFF\n" + TETRAHEDRON.replace("3 1 2 3", "3 1 2"), "a face of 2 corners"),
        ("OFF\n" + TETRAHEDRON.replace("3 1 2 3", "3 1 2 4"), "a face has vertex 4; the file holds 0 to 3"),
        ("OFF\n" + TETRAHEDRON.replace("1 0 0", "1 nan 0"), "expected a finite surface"),
        ("OFF\n", "is cut short"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.off").write_text(text)
    with pytest.raises(InputError, match=f"a.off.*{message}"):
        read_off(tmp_path / "a.off")


def test_a_closed_box_is_filled_and_lies_where_its_numbers_say() -> None:
    corners = np.array([(x, y, z) for z in (0, 30) for y in (0, 16) for x in (5, 13)], float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    grid = voxelised(corners, faces, 32)
    z, y, x = np.argwhere(grid).T
    assert (z.min(), z.max()) == (1, 30)
    assert (y.min(), y.max()) == (8, 23)
    assert (x.min(), x.max()) == (12, 19)
    assert grid.sum() == 30 * 16 * 8
    opened = voxelised(corners, faces[2:], 32)  # without its floor
    assert 0 < opened.sum() < grid.sum() / 2


def test_a_sphere_fills_what_its_formula_says() -> None:
    theta, phi = np.meshgrid(np.linspace(0, np.pi, 40), np.linspace(0, 2 * np.pi, 80, endpoint=False), indexing="ij")
    sphere = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1).reshape(-1, 3)
    i, j = (n.ravel() for n in np.meshgrid(np.arange(39), np.arange(80), indexing="ij"))
    here, after = i * 80 + j, i * 80 + (j + 1) % 80
    faces = np.concatenate([np.stack([here, here + 80, after], 1), np.stack([here + 80, after + 80, after], 1)])
    grid = voxelised(sphere, faces, 34)
    radius = 16
    assert 4 / 3 * np.pi * (radius - 0.5) ** 3 < grid.sum() < 4 / 3 * np.pi * (radius + 1) ** 3


def test_a_folder_that_is_no_class_is_named_and_ten_classes_stay_ten(tmp_path: Path) -> None:
    ModelNet40.write_example(tmp_path)
    dataset = ModelNet40(tmp_path, size=16, val_fraction=0.25)
    assert dataset.card.targets["label"].names == ("bookshelf", "table")
    splits = [case.split for case in dataset.cases()]
    assert {name: splits.count(name) for name in set(splits)} == {"train": 6, "val": 2, "test": 2}
    (tmp_path / "table").rename(tmp_path / "desktop")
    with pytest.raises(InputError, match="holds the folder 'desktop'; known: airplane"):
        ModelNet40(tmp_path)
