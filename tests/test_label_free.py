"""Tasks without labels: each part equals its formula, and what is not learnt is told apart from what is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.nn.contrast import change_contrast
from inflate3d.nn.crops import Crop, common_cells, draw_crop
from inflate3d.nn.info_nce import info_nce
from inflate3d.nn.masking import block_statistics, draw_blocks
from inflate3d.nn.prototypes import even_assignments
from inflate3d.targets import VoxelValueTarget
from inflate3d.tasks.arrow_of_time import ArrowOfTime
from inflate3d.tasks.dense_contrast import DenseContrast
from inflate3d.tasks.distillation import Distillation
from inflate3d.tasks.masked_volume import MaskedVolume
from inflate3d.tasks.self_distillation import SelfDistillation
from toy_batches import ToyEncoder, bound, toy_batch, toy_card


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


@pytest.mark.parametrize(
    ("size", "block"), [((16, 16, 16), (4, 4, 4)), ((9, 10, 7), (4, 4, 4)), ((8, 16, 16), (8, 8, 8))]
)
def test_as_many_whole_blocks_are_hidden_of_each_sample(size: Any, block: Any) -> None:
    mask = draw_blocks(5, size, block=block, share=0.6, generator=seeded())
    assert mask.shape == (5, 1, *size)
    cells = mask[:, 0, :: block[0], :: block[1], :: block[2]].flatten(1)
    assert (cells.sum(1) == round(0.6 * cells.shape[1])).all()
    for axis, edge in enumerate(block, start=2):  # every voxel is as the first of its block
        first = torch.arange(mask.shape[axis]) // edge * edge
        assert torch.equal(mask, mask.index_select(axis, first))
    assert not torch.equal(mask[0], mask[1])


def test_blocks_are_normalised_by_their_own_mean_and_deviation() -> None:
    image = 5 + 3 * torch.randn(2, 1, 9, 8, 6, generator=seeded())
    mean, deviation = block_statistics(image, block=(4, 4, 4))
    corner, rest = image[0, 0, :4, :4, :4], image[1, 0, 8:, 4:, 4:]
    torch.testing.assert_close(mean[0, 0, 1, 2, 3], corner.mean())
    torch.testing.assert_close(deviation[0, 0, 0, 0, 0], (corner.var(unbiased=False) + 1e-4).sqrt())
    torch.testing.assert_close(mean[1, 0, 8, 7, 5], rest.mean())


def test_a_tube_hides_the_same_of_every_frame_and_a_perfect_answer_explains_all() -> None:
    card = toy_card(media="video")
    task: Any = bound(MaskedVolume(datasets=["toy"], tube=True, block=4), card)
    image = toy_batch(card).image
    mask = task.draw(image, 3)
    assert torch.equal(mask, mask[:, :, :1].expand_as(mask))
    mean, deviation = block_statistics(image, block=task.blocks(image))
    for answer, explained in (((image - mean) / deviation, 1.0), (torch.zeros_like(image), 0.0)):
        task.decoders = {"toy": lambda features, answer=answer: answer}
        values = task.step(ToyEncoder(), toy_batch(card), seed=5)
        assert float(values["explained"]) == pytest.approx(explained, abs=1e-5)
    shown = task.predict(ToyEncoder(), toy_batch(card)).tensor
    hidden = (shown != image).any(dim=1)
    assert 0.3 < hidden.float().mean() < 0.8  # what was hidden is the blocks' means now, the rest is the image


def test_a_curve_changes_intensities_and_never_places() -> None:
    image = torch.randn(3, 1, 6, 7, 8, generator=seeded())
    assert change_contrast(image, seeded(), strength=0) is image
    changed = change_contrast(image, seeded(), strength=1)
    assert changed.shape == image.shape
    assert torch.equal(changed, change_contrast(image, seeded(), strength=1))
    assert not torch.equal(changed, change_contrast(image, seeded(1), strength=1))
    flat = torch.zeros(1, 1, 4, 4, 4)
    flat[..., :2] = 1.0
    two = change_contrast(flat, seeded(), strength=1)
    apart = (two[..., :2].mean() - two[..., 2:].mean()).abs()
    assert apart > 3 * two[..., :2].std() / 64**0.5  # two things stay two


def test_a_crop_finds_the_same_place_as_the_whole() -> None:
    image = torch.randn(2, 3, 10, 12, 14, generator=seeded())
    whole = Crop((0, 0, 0), (10, 12, 14))
    for number in range(6):
        crop = draw_crop((10, 12, 14), least=0.5, most=0.9, generator=seeded(number), flips=(0, 1, 2))
        points = common_cells(whole, crop, (1, 1, 1))
        assert len(points) == crop.size[0] * crop.size[1] * crop.size[2]
        torch.testing.assert_close(crop.sample(crop.of(image), points), whole.sample(image, points))
        z, y, x = (points[5] - 0.5).long().tolist()
        torch.testing.assert_close(crop.sample(crop.of(image), points)[:, 5], image[:, :, z, y, x])
    assert Crop((1, 2, 3), (4, 4, 4)).of(image, size=(2, 2, 2)).shape == (2, 3, 2, 2, 2)


def test_info_nce_equals_the_formula() -> None:
    a, b = torch.randn(6, 4, generator=seeded()), torch.randn(6, 4, generator=seeded(1))
    loss, hits = info_nce(a, b, 0.2)
    cosines = torch.stack([torch.stack([torch.cosine_similarity(x, y, dim=0) for y in b]) for x in a]) / 0.2
    expected = -(cosines.log_softmax(1).diagonal() + cosines.log_softmax(0).diagonal()).mean() / 2
    torch.testing.assert_close(loss, expected)
    assert float(hits) == (cosines.argmax(1) == torch.arange(6)).float().mean()
    assert float(info_nce(a, a, 0.01)[1]) == 1


class Places(ToyEncoder):
    """Features that tell a voxel's own value: the right answer of dense contrast, where views keep contrast."""

    def forward(self, view_BCDHW: torch.Tensor, *, domain: str) -> Any:
        features = super().forward(view_BCDHW, domain=domain)
        level = torch.nn.functional.adaptive_avg_pool3d(view_BCDHW, features.maps[0].shape[2:])
        features.maps[0] = torch.cat([level, level.square(), level.sin(), level.cos()], dim=1)
        return features


class Noise(ToyEncoder):
    """Features that tell nothing: other ones at each call."""

    def forward(self, view_BCDHW: torch.Tensor, *, domain: str) -> Any:
        features = super().forward(view_BCDHW, domain=domain)
        self.calls = getattr(self, "calls", 0) + 1
        features.maps = [torch.randn(m.shape, generator=seeded(self.calls)) for m in features.maps]
        return features


class Normed(ToyEncoder):
    """Features that depend on how a batch is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm3d(1)

    def forward(self, view_BCDHW: torch.Tensor, *, domain: str) -> Any:
        features = super().forward(view_BCDHW, domain=domain)
        features.pooled = features.pooled * self.norm(view_BCDHW).flatten(1)[:, :6]
        return features


def test_places_are_found_again_by_features_that_tell_them_and_not_by_others() -> None:
    card = toy_card()
    found = []
    for encoder in (Places(), Noise()):
        task: Any = DenseContrast(datasets=["toy"], crop=1.0, contrast=0.0)
        task.bind({"toy": card})
        task.build(encoder)
        task.project.of = lambda maps: [maps[0], *(m * 0 for m in maps[1:])]
        values = task.step(encoder, toy_batch(card, size=(8, 12, 12)), seed=2)
        found.append(float(values["found"]))
        assert 0 < float(values["chance"]) < 0.05
    assert found[0] > 0.4 > 10 * found[1]  # of two levels one tells


def test_another_contrast_comes_from_its_target_and_a_wrong_name_is_refused() -> None:
    card = toy_card(other=VoxelValueTarget())
    task: Any = bound(DenseContrast(datasets=["toy"], other_contrast="other", contrast=0.0), card)
    batch = toy_batch(card)
    batch.targets["other"] = batch.targets["other"].float()
    assert torch.equal(task._contrast(batch, seeded(), second=True)[:, 0], batch.targets["other"])
    assert torch.equal(task._contrast(batch, seeded(), second=False), batch.image)
    with pytest.raises(InputError, match="has a target 'othr'"):
        bound(DenseContrast(datasets=["toy"], other_contrast="othr"), card)
    with pytest.raises(InputError, match="one place at every level"):
        task.step(ToyEncoder(), toy_batch(card, size=(2, 2, 2)), seed=0)


def test_assignments_are_even_over_prototypes_and_sum_to_one() -> None:
    cosines = torch.randn(64, 8, generator=seeded()).tanh()
    cosines[:, 0] += 0.5  # one prototype that all like best
    even = even_assignments(cosines, temperature=0.1, rounds=50)
    torch.testing.assert_close(even.sum(1), torch.ones(64))
    torch.testing.assert_close(even.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=1e-2)
    assert (cosines.argmax(1) == 0).float().mean() > 0.3
    assert even.argmax(1).bincount(minlength=8).max() < 24


def test_the_slow_teacher_moves_by_the_formula_and_the_student_alone_learns() -> None:
    card, encoder = toy_card(), ToyEncoder()
    task: Any = SelfDistillation(datasets=["toy"], prototypes=8, width=4, momentum=0.9)
    task.bind({"toy": card})
    task.build(encoder)
    task.step(encoder, toy_batch(card), seed=1)["loss"].backward()
    assert all(p.grad is None for m in task.frozen_modules().values() for p in m.parameters())
    assert encoder.weight.grad is not None
    before = task.teacher_head.directions.weight.clone()
    with torch.no_grad():
        task.head.directions.weight += 1
        encoder.weight += 1
    task.after_step(encoder, step=1)
    torch.testing.assert_close(task.teacher_head.directions.weight, 0.9 * before + 0.1 * task.head.directions.weight)
    torch.testing.assert_close(task.teacher.weight, torch.tensor(1.1))


def test_the_slow_teacher_sees_each_batch_as_the_student_does() -> None:
    card, encoder = toy_card(), Normed()
    task: Any = SelfDistillation(datasets=["toy"], prototypes=8, width=4)
    task.bind({"toy": card})
    task.build(encoder)
    for training, number in ((True, 0), (True, 1), (False, 2)):
        encoder.train(training)
        task.head.train(training)
        view = 5 + 3 * toy_batch(card, number=number).image
        with torch.no_grad():
            told, taught = task.head(encoder(view, domain="toy")), task._taught(view, "toy")
        torch.testing.assert_close(taught, told)  # both nets are one at the start
    untouched = {k: v for k, v in task.teacher.state_dict().items() if k.endswith("weight")}
    torch.testing.assert_close(untouched, {k: v for k, v in encoder.state_dict().items() if k.endswith("weight")})


def test_an_anchor_holds_the_start_and_pulls_back_what_left_it() -> None:
    card, encoder = toy_card(), Places()
    task: Any = Distillation(datasets=["toy"])
    task.bind({"toy": card})
    task.build(encoder)
    batch = toy_batch(card)
    assert task.step(encoder, batch, seed=0)["loss"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        encoder.weight.fill_(-1.0)
    moved = task.step(encoder, batch, seed=0)["loss"]
    moved.backward()
    assert moved.item() > 0.5
    with pytest.raises(InputError, match=r"levels holds \[7\]; both nets have levels 0 to 1"):
        bound(Distillation(datasets=["toy"], levels=[7]), card)


@pytest.mark.slow
def test_the_start_sees_each_batch_as_the_student_does_and_its_weights_stay() -> None:
    from inflate3d.models import Backbone, BackboneConfig
    from inflate3d.training.step_encoder import StepEncoder

    torch.manual_seed(0)
    card = toy_card()
    backbone = Backbone(BackboneConfig(name="test_resnet", stems={"ct": 1}, plan="isotropic"))
    backbone.setup_domains({"toy": card})
    task: Any = Distillation(datasets=["toy"])
    task.bind({"toy": card})
    task.build(backbone)
    task.teacher.eval()
    before = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    batch = toy_batch(card, size=(16, 40, 40))
    for training in (True, False):
        backbone.train(training)
        task.match.train(training)
        assert task.step(StepEncoder(backbone), batch, seed=0)["loss"].item() == pytest.approx(0, abs=1e-5)
    after = task.teacher.state_dict()
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"domain_mean", "domain_var", "num_batches_tracked"}


def test_a_teacher_by_name_is_the_2d_net_on_each_slice() -> None:
    import inflate3d

    torch.manual_seed(0)
    task: Any = bound(Distillation(datasets=["toy"], teacher={"name": "test_resnet", "pretrained": False}), toy_card())
    clip = torch.randn(1, 1, 5, 32, 32)
    maps = task.teacher(clip, domain="toy").maps
    one = task.teacher(clip[:, :, 2:3], domain="toy").maps
    torch.testing.assert_close(maps[-1][:, :, 2], one[-1][:, :, 0], rtol=1e-4, atol=1e-5)
    assert not task.teacher.train().training
    assert isinstance(inflate3d.create_model("test_resnet", plan="2d"), torch.nn.Module)


@pytest.mark.parametrize("frames", [4, 9, 16])
def test_each_play_is_what_it_says(frames: int) -> None:
    plays = ["forwards", "backwards", "fast", "shuffled"]
    task: Any = bound(ArrowOfTime(datasets=["toy"], plays=plays), toy_card(media="video"))
    clip = torch.arange(frames).view(1, frames, 1, 1).float().expand(3, -1, 2, 2)
    for number in range(8):
        shown = {play: task._play(clip, play, seeded(number))[0, :, 0, 0] for play in plays}
        assert {len(v) for v in shown.values()} == {frames // 2}
        assert (shown["forwards"].diff() == 1).all()
        assert (shown["backwards"].diff() == -1).all()
        assert (shown["fast"].diff() == 2).all()
        if frames > 5:
            assert len(shown["shuffled"].diff().unique()) > 1
        assert len(shown["shuffled"].unique()) == frames // 2


def test_plays_come_in_turns_and_short_clips_are_refused() -> None:
    card = toy_card(media="video")
    task: Any = bound(ArrowOfTime(datasets=["toy"]), card)
    task.head = lambda features: torch.tensor([[1.0, 0.0]]).expand(4, -1)
    values = task.step(ToyEncoder(), toy_batch(card, batch=4), seed=1)
    assert (float(values["accuracy"]), float(values["chance"])) == (0.5, 0.5)
    with pytest.raises(InputError, match="clips have 3 frames; give num_frames 4 or more"):
        task.step(ToyEncoder(), toy_batch(card, size=(3, 8, 8)), seed=1)
    with pytest.raises(InputError, match=r"close name.*'backwards'"):
        ArrowOfTime(datasets=["toy"], plays=["forwards", "backward"])


# ------------------------------------------------------------------------------------------------- what is shown


def test_what_is_hidden_is_shown_hidden_and_filled_in_and_the_rest_is_the_image() -> None:
    task: Any = bound(MaskedVolume(datasets=["toy"], block=4), toy_card())
    batch = toy_batch(toy_card())
    with torch.no_grad():
        exhibits = task.show(ToyEncoder(), batch, seed=3)
    is_hidden = task.draw(batch.image, 3)
    assert [exhibit.one_scale for exhibit in exhibits] == [True] * len(batch)
    for i, exhibit in enumerate(exhibits):
        image, seen, filled = (panel.image_CDHW for panel in exhibit.panels)
        assert torch.equal(image, batch.image[i])
        assert torch.equal(seen, image.masked_fill(is_hidden[i], 0.0))
        assert torch.equal(filled.masked_fill(is_hidden[i], 0.0), seen)
        assert not torch.equal(filled, seen)


def test_a_mark_lies_on_its_place_in_a_crop_that_is_turned_round() -> None:
    places = torch.arange(10 * 12 * 14).view(1, 1, 10, 12, 14).float()
    crop = Crop((2, 3, 4), (6, 8, 9), (2,))
    point = torch.tensor([5.5, 6.5, 7.5])  # the middle of voxel (5, 6, 7)
    marks = crop.marks([(4, point)], (1, 1, 1))
    assert marks.shape == (6, 8, 9)
    assert crop.of(places)[0, 0][marks == 4].tolist() == [float(places[0, 0, 5, 6, 7])]
    assert (crop.marks([(1, point)], (2, 2, 2)) == 1).sum() == 4  # a cell, one voxel along D


def test_places_that_are_told_apart_are_shown_where_they_lie() -> None:
    card = toy_card()
    task: Any = bound(DenseContrast(datasets=["toy"], contrast=0.0, crop=1.0), card)
    task.project.of = lambda maps: list(maps)  # features as they are
    batch = toy_batch(card)
    for encoder, is_right in ((Places(), True), (Noise(), False)):
        with torch.no_grad():
            exhibit = task.show(encoder, batch, seed=1)[0]
        first, second, found = exhibit.panels[:3]
        assert torch.equal(found.image_CDHW, second.image_CDHW)
        assert first.marks_DHW.unique().tolist() == second.marks_DHW.unique().tolist()
        assert len(first.marks_DHW.unique()) > 2
        assert torch.equal(found.marks_DHW, second.marks_DHW) is is_right


def test_a_play_is_shown_as_it_was_played_with_what_was_told() -> None:
    card = toy_card(media="video")
    task: Any = bound(ArrowOfTime(datasets=["toy"]), card)
    batch = toy_batch(card)
    torch.nn.init.zeros_(task.head.linear.weight)
    task.head.linear.bias.data = torch.tensor([0.0, 9.0])  # always: backwards
    with torch.no_grad():
        exhibits = task.show(ToyEncoder(), batch, seed=0)
    for exhibit, clip in zip(exhibits, batch.image, strict=True):
        (panel,) = exhibit.panels
        halves = [clip[:, i : i + clip.shape[1] // 2] for i in range(clip.shape[1] // 2 + 1)]
        played = next(
            play
            for play, way in (("forwards", 1), ("backwards", -1))
            for half in halves
            if torch.equal(panel.image_CDHW, half if way == 1 else half.flip(1))
        )
        assert exhibit.said == f"played {played}, told backwards 1.00: {'right' if played == 'backwards' else 'WRONG'}"
    assert len({exhibit.said for exhibit in exhibits}) == 2


def test_crops_and_agreement_are_shown() -> None:
    card = toy_card()
    with torch.no_grad():
        crops = bound(SelfDistillation(datasets=["toy"], prototypes=4), card).show(
            ToyEncoder(), toy_batch(card), seed=1
        )
        same = bound(Distillation(datasets=["toy"]), card).show(ToyEncoder(), toy_batch(card), seed=1)
    assert [p.caption.split(":")[0] for p in crops[0].panels] == ["global 1", "global 2", "local 1", "local 2"]
    assert "of 6 pairs of crops" in crops[0].said
    assert same[0].said == "cosine with the teacher: level 0 1.00, level 1 1.00"  # at the start both are one net
    torch.testing.assert_close(same[0].panels[1].image_CDHW, torch.ones(1, 8, 12, 10))
