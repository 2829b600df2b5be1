"""Distances between surfaces, and the largest component, against what a search over all voxels finds."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from inflate3d.data.raw.readers import read_volume, write_nifti
from inflate3d.evaluation.prediction.case_scores import CaseScores
from inflate3d.evaluation.prediction.components import largest_components
from inflate3d.evaluation.prediction.surface import surface_distances_mm
from inflate3d.targets import MaskTarget

SPACING_MM = (2.5, 0.8, 1.3)
FACES = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]


def surface(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a face to another value or to the outside, one by one."""
    inside = {tuple(voxel) for voxel in np.argwhere(mask).tolist()}
    return [v for v in inside if any(tuple(np.add(v, face)) not in inside for face in FACES)]


def distances(one: np.ndarray, other: np.ndarray) -> list[float]:
    there = [np.multiply(v, SPACING_MM) for v in surface(other)]
    return [min(float(np.linalg.norm(np.multiply(v, SPACING_MM) - w)) for w in there) for v in surface(one)]


@pytest.mark.parametrize("seed", range(2))
def test_distances_are_those_of_a_search_over_all_pairs(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, other = (np.kron(draw.random((3, 3, 4)) > 0.6, np.ones((2, 2, 2))).astype(bool) for _ in range(2))
    there, back = distances(one, other), distances(other, one)
    hd95, mean = surface_distances_mm(one, other, SPACING_MM)
    assert hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert mean == pytest.approx(np.mean([*there, *back]))
    assert surface_distances_mm(other, one, SPACING_MM) == pytest.approx((hd95, mean))
    assert surface_distances_mm(one, one, SPACING_MM) == (0, 0)


def test_a_shift_is_as_far_as_it_is_in_mm() -> None:
    one, other = np.zeros((2, 9, 7, 8), bool)
    one[2], other[4] = True, True  # plates, two slices of 2.5 mm apart
    assert surface_distances_mm(one, other, SPACING_MM) == (5, 5)


@pytest.mark.slow  # its import
def test_monai_says_the_same_of_hd95() -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance

    draw = np.random.default_rng(7)
    one, other = (np.kron(draw.random((4, 5, 4)) > 0.5, np.ones((3, 2, 3))).astype(bool) for _ in range(2))
    masks = (torch.from_numpy(m)[None, None] for m in (one, other))
    theirs = compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=list(SPACING_MM))
    assert surface_distances_mm(one, other, SPACING_MM)[0] == pytest.approx(float(theirs), rel=1e-4)


def test_what_is_empty_says_nothing_or_is_infinitely_far() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert all(map(math.isnan, surface_distances_mm(empty, empty, SPACING_MM)))
    assert surface_distances_mm(empty, full, SPACING_MM) == (math.inf, math.inf)
    assert surface_distances_mm(full, empty, SPACING_MM) == (math.inf, math.inf)


# --------------------------------------------------------------------------------------------------- scores of a case


def test_scores_of_cases_stand_beside_dice(tmp_path: Path) -> None:
    truths, guesses = np.zeros((2, 6, 5, 4), np.uint8), np.zeros((2, 6, 5, 4), np.uint8)
    truths[0, :4, :3], guesses[0, 1:4, :4] = 1, 1  # 36 voxels of 48; 4 x 12 guessed
    truths[0, 5], guesses[1, 0, 0, 0] = 2, 2  # missed; made up where the other case has none
    (tmp_path / "labels").mkdir()
    affine = np.diag([*SPACING_MM[::-1], 1.0])
    for i, truth in enumerate(truths):
        write_nifti(tmp_path / f"labels/c{i}.nii", truth, affine)
    target = MaskTarget(("background", "a", "b", "never"))
    scores = CaseScores(tmp_path / "labels", ["c0", "c1"], target, tmp_path / "dice.csv")
    for i, guess in enumerate(guesses):
        stored = read_volume(tmp_path / f"labels/c{i}.nii", orientation=None)
        scores.add(f"c{i}", guess.transpose(2, 1, 0), stored)
    scores.close()
    header, *rows = [line.split(",") for line in (tmp_path / "dice.csv").read_text().splitlines()]
    named = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    hd95, mean = (f"{v:.6f}" for v in surface_distances_mm(guesses[0] == 1, truths[0] == 1, SPACING_MM))
    true, guessed, both = 4 * 3 * 4, 3 * 4 * 4, 3 * 3 * 4
    assert {
        name: named["c0"][f"{name}_a"] for name in ("hd95_mm", "surface_mm", "sensitivity", "precision", "dice")
    } == {
        "hd95_mm": hd95,
        "surface_mm": mean,
        "sensitivity": f"{both / true:.6f}",
        "precision": f"{both / guessed:.6f}",
        "dice": f"{2 * both / (true + guessed):.6f}",
    }
    missed, made_up = named["c0"], named["c1"]
    assert (missed["dice_b"], missed["hd95_mm_b"], missed["sensitivity_b"], missed["precision_b"]) == (
        *("0.000000", "inf", "0.000000", ""),
    )
    assert (made_up["dice_b"], made_up["surface_mm_b"], made_up["sensitivity_b"], made_up["precision_b"]) == (
        *("0.000000", "inf", "", "0.000000"),
    )
    assert {value for name, value in made_up.items() if name.endswith(("_a", "_never"))} == {""}
    assert named["mean"]["hd95_mm"] == hd95  # of what is finite
    assert "2 of 3 distances are inf, a class missed or made up, and in no mean" in str(scores)


# --------------------------------------------------------------------------------------------------------- components


def flooded(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Components by a flood fill over faces, edges and corners, in the order of their first voxels."""
    left, found = {tuple(v) for v in np.argwhere(mask).tolist()}, []
    steps = [step for step in product((-1, 0, 1), repeat=3) if any(step)]
    for start in sorted(left):
        if start not in left:
            continue
        part, border = set(), [start]
        while border:
            voxel = border.pop()
            if voxel in left:
                left.remove(voxel)
                part.add(voxel)
                border += [tuple(np.add(voxel, step).tolist()) for step in steps]
        found.append(part)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_component_of_a_class_stays(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.choice(4, p=[0.82, 0.06, 0.06, 0.06], size=(9, 8, 7)).astype(np.uint8)
    kept = largest_components(labels, [1, 3])
    for label in (1, 3):
        largest = max(flooded(labels == label), key=len)
        assert {tuple(v) for v in np.argwhere(kept == label).tolist()} == largest
    assert np.array_equal(kept == 2, labels == 2)
    assert set(np.unique(kept[kept != labels])) == {0}


def test_a_class_that_is_not_there_changes_nothing() -> None:
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0], labels[2, 2, 2] = 1, 1  # as large as each other: the first stays
    assert largest_components(labels, [2, 9]).tolist() == labels.tolist()
    assert np.argwhere(largest_components(labels, [1])).tolist() == [[0, 0, 0]]
