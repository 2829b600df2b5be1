"""Formula-driven data: pure functions of (seed, index), classes that differ, and clips whose frames tell nothing."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from inflate3d.data.formula.motions import CHANGES, Motion, draw_clip
from inflate3d.data.formula.rendering import bias_field, blur, smooth_noise
from inflate3d.data.formula.scenes import form_of_organ, form_of_solid, place
from inflate3d.data.formula.solids import TURNINGS, Part, Solid, draw_solid, draw_turn, draw_upright_turn, occupancy
from inflate3d.datasets.formula_motions import FormulaMotions
from inflate3d.datasets.formula_scenes import FormulaScenes
from inflate3d.datasets.formula_shapes import FormulaShapes
from inflate3d.errors import InputError

STILL = {"turn": np.eye(3, dtype=np.float32), "place": np.zeros(3, np.float32)}


def ball(radius: float) -> Part:
    return Part("superquadric", np.full(3, radius, np.float32), exponents=(2.0, 2.0), **STILL)


def filled(solid: Solid, size: int = 32, radius: float = 12) -> np.ndarray:
    shape = (size,) * 3
    part, box = occupancy(solid, shape, middle=np.full(3, (size - 1) / 2), radius=radius, turn=np.eye(3))
    whole = np.zeros(shape, np.float32)
    whole[box] = part
    return whole


def test_a_superquadric_of_exponent_2_is_a_ball_and_of_a_large_one_a_box() -> None:
    box = Part("superquadric", np.ones(3, np.float32), exponents=(60.0, 60.0), **STILL)
    for part, share in ((ball(1.0), np.pi / 6), (box, 1.0)):
        whole = filled(Solid((part,)))
        places = np.argwhere(whole > 0.5)
        extent = places.max(0) - places.min(0) + 1
        assert whole.sum() / extent.prod() == pytest.approx(share, rel=0.1)
        assert 2 * 12 / np.sqrt(3) <= extent.max() <= 2 * 12 * 1.2


def test_what_cuts_is_taken_away_and_a_wall_leaves_the_middle_empty() -> None:
    whole, core = filled(Solid((ball(1.0),))), Part("superquadric", np.full(3, 0.5, np.float32), cuts=True, **STILL)
    assert filled(Solid((ball(1.0), core))).sum() == pytest.approx(whole.sum() * 7 / 8, rel=0.03)
    hollow = filled(Solid((ball(1.0),), wall=0.2))
    assert hollow[16, 16, 16] == 0
    assert hollow.sum() == pytest.approx(whole.sum() * (1 - 0.8**3), rel=0.1)


def test_turns_are_rotations_and_solids_stay_in_their_ball() -> None:
    draw = np.random.default_rng(0)
    for _ in range(30):
        turn = draw_turn(draw)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(turn) == pytest.approx(1)
        places = np.argwhere(filled(draw_solid(draw), radius=10) > 0.5)
        assert np.linalg.norm(places - 15.5, axis=1).max(initial=0) < 10 * 1.35  # a coarse search finds the ball


def test_noise_bias_and_blur_are_what_they_say() -> None:
    draw = np.random.default_rng(0)
    noise = smooth_noise((20, 24, 28), draw, cells=4)
    assert noise.shape == (20, 24, 28)
    assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=1e-5)
    assert np.abs(np.diff(noise, axis=2)).mean() < 0.5 * np.abs(noise).mean()
    field = bias_field((9, 10, 11), draw)
    assert 0.3 < field.min() <= field.max() < 3
    point = np.zeros((9, 9, 9), np.float32)
    point[4, 4, 4] = 1
    spread = blur(point, sigma=0.8)
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    assert spread[4, 4, 5] / spread[4, 4, 4] == pytest.approx(np.exp(-0.5 / 0.8**2), rel=1e-4)
    assert blur(np.ones((4, 5, 6), np.float32), sigma=0.9) == pytest.approx(1)


def test_what_a_scene_places_is_its_form_and_ends_inside_its_box() -> None:
    organ = np.zeros((20, 12, 12), bool)
    organ[1:19, 2:10, 2:10] = True
    forms = [form_of_solid(Solid((ball(1.0),)), 48), form_of_organ(organ, 48)]
    # A ball that touches the cube, and a block that fills 18 of 20 cells along the cube's edge and 8 across.
    for form, share in zip(forms, (np.pi / 6, 18 * 8 * 8 / 20**3), strict=True):
        assert (form < 0).mean() == pytest.approx(share, rel=0.15)
        assert min(form[0].min(), form[-1].min(), form[:, 0].min(), form[..., -1].min()) > 0
        for seed in range(8):
            part, box = place(form, (40, 40, 40), middle=np.full(3, 19.5), radius=15, draw=np.random.default_rng(seed))
            assert part.shape == tuple(s.stop - s.start for s in box)
            assert max(part[0].max(), part[-1].max(), part[:, 0].max(), part[..., -1].max()) < 0.5
            is_hollow = part[tuple(n // 2 for n in part.shape)] < 0.5
            assert is_hollow or 0.2 < part.sum() / (30**3 * share) < 1  # stretched: at least a tenth smaller


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: FormulaShapes(num_classes=5, size=16, rendering="mixed", **o),
        lambda **o: FormulaScenes(size=16, num_solids=3, **o),
        lambda **o: FormulaMotions(size=32, num_frames=4, **o),
    ],
    ids=["shapes", "scenes", "motions"],
)
def test_a_case_depends_on_the_seed_and_its_number_alone(make: Any) -> None:
    few, many, other = make(num_train=3, num_val=2), make(num_train=9, num_val=2), make(num_train=3, num_val=2, seed=1)
    for a, b, c in zip(few.cases(), [*many.cases()[:3], *many.cases()[9:]], other.cases(), strict=True):
        one, again, another = few.read(a), many.read(b), other.read(c)
        assert (one.video, str(one.targets)) == (again.video, str(again.targets))
        np.testing.assert_array_equal(one.image, again.image)
        assert one.video != another.video if one.image is None else not np.array_equal(one.image, another.image)


def test_shapes_of_one_formula_are_alike_and_of_two_are_not() -> None:
    shapes = FormulaShapes(num_classes=4, num_train=160, num_val=1, size=20)
    found = [shapes.read(case) for case in shapes.cases()[:160]]
    # How much is filled within each distance of the middle of mass: the same however a thing is turned.
    rows = []
    for sample in found:
        places = np.argwhere(sample.image[0] > 0)  # type: ignore[index]
        away = np.linalg.norm(places - places.mean(0), axis=1)
        rows.append(np.histogram(away, bins=10, range=(0, 12))[0] / len(places))
    features, labels = np.array(rows), np.array([s.targets["formula"] for s in found])
    nearest = [np.abs(features[:80] - row).sum(1).argmin() for row in features[80:]]
    assert (labels[:80][nearest] == labels[80:]).mean() > 0.5  # a quarter by chance


def test_an_upright_turn_keeps_z_within_fifteen_degrees_and_turns_about_it_in_any_way() -> None:
    draw = np.random.default_rng(0)
    turns = np.array([draw_upright_turn(draw) for _ in range(500)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-6)
    assert np.cos(np.deg2rad(15)) - 1e-6 <= turns[:, 0, 0].min() < np.cos(np.deg2rad(13))
    around = np.arctan2(turns[:, 2, 1], turns[:, 1, 1])
    assert np.histogram(around, bins=8, range=(-np.pi, np.pi))[0].min() > 30


def test_both_contrasts_of_a_scene_lie_on_one_grid_and_share_edges_but_no_rule() -> None:
    scenes = FormulaScenes(num_train=12, num_val=1, size=32)
    correlations = []
    for case in scenes.cases()[:12]:
        sample = scenes.read(case)
        image, mask, other = sample.image[0], sample.targets["mask"], sample.targets["contrast"]  # type: ignore[index]
        assert image.shape == mask.shape == other.shape == (32, 32, 32)
        assert image.dtype == mask.dtype == other.dtype == np.uint8
        assert 0 < (mask > 0).mean() < 1
        correlations.append(np.corrcoef(image.ravel(), other.ravel())[0, 1])
    assert min(correlations) < 0 < max(correlations)
    assert abs(np.mean(correlations)) < 0.5


def test_things_of_an_upright_scene_stand_and_those_of_any_lie_too() -> None:
    pole = np.full((9, 9, 9), -1.0, np.float32)
    pole[:, :3] = pole[:, 6:] = pole[:, :, :3] = pole[:, :, 6:] = pole[[0, -1]] = 9.0  # thin, and long along z
    lying = {}
    for name, turning in TURNINGS.items():
        draw, spreads = np.random.default_rng(0), []
        for _ in range(60):
            part, _ = place(pole, (40, 40, 40), middle=np.full(3, 20.0), radius=15, draw=draw, draw_turn=turning)
            inside = np.argwhere(part > 0.5)
            if len(inside) > 30:  # a hollow one has next to none
                spread = inside.std(0)
                spreads.append(spread[0] < spread[1:].max())
        assert len(spreads) > 40
        lying[name] = np.mean(spreads)
    assert lying["upright"] < 0.1
    assert lying["any"] > 0.4


@pytest.mark.parametrize("change", range(len(CHANGES)), ids=CHANGES)
def test_a_path_has_the_speed_and_the_change_that_it_says(change: int) -> None:
    path = Motion(0, change, 0, speed=2.0).path(17)
    steps = np.diff(path)
    expected = {"steady": (2, 2), "faster": (0.125, 3.875), "slower": (3.875, 0.125), "reverse": (2, -2)}
    assert (steps[0], steps[-1]) == pytest.approx(expected[CHANGES[change]])
    assert path[0] == 0
    assert path[-1] == (0 if CHANGES[change] == "reverse" else 32)


def test_a_thing_moves_in_its_direction_and_comes_in_again() -> None:
    draw = np.random.default_rng(3)
    clip = draw_clip(Motion(0, 0, 0, speed=4.0), 17, 64, draw).astype(float)
    # 16 frames of 4 pixels to the right are one way around.
    np.testing.assert_allclose(clip[16], clip[0], atol=1)
    moved = np.abs(clip[1:] - clip[:-1]).mean(axis=(0, 1, 3))
    assert (moved > 0).all()  # it passes every column, and the same rows all the time
    assert (np.abs(clip - clip[0]).mean(axis=(0, 2, 3)) == 0).any()


def test_a_pan_moves_all_of_the_scene_and_comes_around() -> None:
    clip = draw_clip(Motion(0, 0, 0, speed=4.0), 17, 64, np.random.default_rng(3), is_pan=True).astype(float)
    np.testing.assert_allclose(clip[16], clip[0], atol=1)
    for t in range(16):
        np.testing.assert_allclose(clip[t + 1], np.roll(clip[t], 4, axis=1), atol=1)


@pytest.mark.slow
def test_one_frame_tells_no_class_of_motion_and_two_do() -> None:
    import av

    motions = FormulaMotions(num_train=900, num_val=1, num_frames=4, size=32)
    frames, labels = [], {"direction": [], "acceleration": [], "turn": []}
    for case in motions.cases()[:900]:
        sample = motions.read(case)
        with av.open(BytesIO(sample.video)) as container:
            decoded = [f.to_ndarray(format="gray") for f in container.decode(video=0)]
        frames.append(np.stack(decoded).astype(np.float32) / 255)
        for name, values in labels.items():
            values.append(sample.targets[name])
    clips = np.stack(frames)  # N T H W
    for name, values in labels.items():
        classes = np.array(values)
        chance, spread = 1 / (classes.max() + 1), 0.5 / np.sqrt(300)
        for t in (0, 3):
            assert probed(clips[:, t].reshape(900, -1), classes) < chance + 4 * spread, (name, t)
    centre = np.stack([shift(a, b) for a, b in zip(clips[:, 0], clips[:, 3], strict=True)])
    assert probed(centre, np.array(labels["direction"])) > 0.25


def probed(features: np.ndarray, classes: np.ndarray) -> float:
    """Return the accuracy of ridge regression to the classes on the last 300, fitted on the others."""
    features = (features - features[:600].mean(0)) / (features[:600].std(0) + 1e-6)
    wanted = np.eye(classes.max() + 1)[classes]
    gram = features[:600] @ features[:600].T + 100 * np.eye(600)
    answer = features[600:] @ features[:600].T @ np.linalg.solve(gram, wanted[:600])
    return float((answer.argmax(1) == classes[600:]).mean())


def shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the middle of the phase correlation of two frames: how far things moved."""
    product = np.fft.fft2(b - b.mean()) * np.conj(np.fft.fft2(a - a.mean()))
    return np.fft.fftshift(np.fft.ifft2(product).real)[10:23, 10:23].ravel()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FormulaShapes(num_classes=1), "num_classes is 1; it must be at least 2"),
        (lambda: FormulaShapes(rendering="binry"), "binary"),
        (lambda: FormulaShapes(turns="uprite"), "upright"),
        (lambda: FormulaScenes(size=4), "size is 4"),
        (lambda: FormulaScenes(organs="nowhere"), "nowhere"),
        (lambda: FormulaMotions(size=33), "size is 33; it must be even"),
        (lambda: FormulaMotions(photos="nowhere"), "nowhere"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
