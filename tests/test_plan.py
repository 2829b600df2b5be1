"""Plans: presets as their sources say, and `auto` that never collapses a volume."""

import math

import inflate3d
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from inflate3d.errors import InputError
from inflate3d.inflation import PRESETS, InflationPlan, resolve_plan


def test_i3d_strides_are_those_of_figure_3():
    # conv1 /2, first two max-pools keep time, the third and fourth halve it: 64 frames end as 8.
    plan = PRESETS["i3d"]
    assert [plan.stride(level - 1, level) for level in range(1, 6)] == [2, 1, 1, 2, 2]
    assert plan.total_stride == 8
    assert plan.min_depth == 9  # two frames for the 2x7x7 average pool


def slices_at(plan, depth, level):
    """How many slices are left at a level, whichever way the net gets there: one step or one a level."""
    one_by_one = depth
    for below in range(1, level + 1):
        one_by_one = math.ceil(one_by_one / plan.stride(below - 1, below))
    assert one_by_one == math.ceil(depth / plan.stride(0, level))
    return one_by_one


@pytest.mark.parametrize("spacing", [None, (5.0, 0.8, 0.8), (1.0, 1.0, 1.0), (0.5, 1.0, 1.0), (0.01, 1.0, 2.0)])
def test_auto_keeps_two_slices_at_any_level_for_every_depth_up_to_600(spacing):
    for depth in range(1, 601):
        plan = resolve_plan("auto", input_size=(depth, 256, 256), spacing_mm=spacing)
        assert all(slices_at(plan, depth, level) >= min(2, depth) for level in range(9))


@given(
    depth=st.integers(1, 600),
    spacing=st.tuples(*[st.floats(0.05, 50.0)] * 3),
    levels=st.integers(1, 9),
)
@example(depth=600, spacing=(0.05, 50.0, 50.0), levels=9)
def test_auto_is_sound_for_any_spacing_and_any_number_of_levels(depth, spacing, levels):
    plan = resolve_plan("auto", input_size=(depth, 512, 512), spacing_mm=spacing)
    assert slices_at(plan, depth, levels) >= min(2, depth)
    z, in_plane = spacing[0], min(spacing[1:])
    for level in range(levels + 1):
        if level and plan.stride(level - 1, level) > 1:
            assert z <= 1.5 * in_plane  # slices that are coarse already are never thinned out
        z, in_plane = z * plan.stride(level - 1, level), in_plane * 2 if level else in_plane
        if plan.kernel(level, 3) > 1:
            assert z <= 2 * in_plane  # and no kernel reaches over slices that lie far apart


def test_auto_strides_fine_volumes_as_space_all_the_way_down():
    plan = resolve_plan("auto", input_size=(256, 256, 256), spacing_mm=(1, 1, 1))
    assert [plan.stride(0, level) for level in range(8)] == [1, 2, 4, 8, 16, 32, 64, 128]


def test_auto_leaves_time_alone_while_slices_are_thick():
    plan = resolve_plan("auto", input_size=(64, 256, 256), spacing_mm=(5.0, 0.8, 0.8))
    assert plan.strides[:3] == (1, 1, 1)
    assert plan.kernel(0, 3) == 1  # 5 mm against .8 mm
    assert plan.kernel(5, 3) == 3
    assert plan.total_stride > 1


def test_auto_without_a_size_is_isotropic():
    assert resolve_plan("auto") is PRESETS["isotropic"]


def test_isotropic_treats_time_as_space_past_32_too():
    assert [PRESETS["isotropic"].stride(0, level) for level in range(8)] == [2**level for level in range(8)]


def test_kernels_follow_the_ops_own_size_unless_the_plan_names_one():
    plan = InflationPlan("mine", kernels=(None, 1, 3), strides=(1, 2, 2))
    assert [plan.kernel(0, 7), plan.kernel(1, 7), plan.kernel(2, 7), plan.kernel(9, 7)] == [7, 1, 3, 3]
    assert plan.kernel(2, 1) == 1
    assert plan.stride(0, 2) == 4
    assert plan.stride(2, 5) == 1


def test_an_explicit_kernel_is_taken_as_it_is():
    plan = InflationPlan("mine", kernels=(None, 7, 2), strides=(1, 1))
    assert plan.kernel(1, 3) == 7  # larger than the spatial one
    assert plan.kernel(2, 3) == 2  # even
    assert plan.kernel(1, 1) == 1  # 1x1 convolutions do not look along D


@pytest.mark.parametrize(
    ("kernels", "strides", "depths"),
    [
        ((7,), (1,), [10, 10, 10, 10, 10]),  # one entry serves all levels; no strides past the end
        ((2, 2, 4), (1, 3, 1, 2), [4, 4, 2, 2, 2]),
        ((None, 1, 3, 5, 7, 9, 11, 13), (1, 4, 1, 1, 1, 1, 3, 3), [3, 3, 3, 3, 3]),  # entries past /32 are not used
        ((None,), (1, 1, 1, 1, 4, 3), [10, 10, 10, 3, 1]),
    ],
)
def test_explicit_plans_run_and_answer_as_2d_on_a_static_clip(kernels, strides, depths):
    plan = {"name": "mine", "kernels": kernels, "strides": strides}
    options = dict(num_classes=5, inflation="mean")
    torch.manual_seed(0)
    net_2d = inflate3d.create_model("test_resnet", plan="2d", **options).eval().double()
    net = inflate3d.create_model("test_resnet", plan=plan, **options).eval().double()
    state = {k: spread(v, net.state_dict()[k]) for k, v in net_2d.state_dict().items()}
    net.load_state_dict(state)
    frame = torch.randn(1, 3, 1, 64, 64, dtype=torch.float64)
    clip = frame.expand(-1, -1, 10, -1, -1)
    with torch.no_grad():
        torch.testing.assert_close(net(clip), net_2d(frame), rtol=1e-10, atol=1e-12)
        maps = net.forward_intermediates(clip, intermediates_only=True)
    assert [m.shape[2] for m in maps] == depths


def spread(value, like):
    """A kernel with one slice as the mean taps lay it along D; all else as it is."""
    return (value / like.shape[2]).expand_as(like) if value.ndim == 5 and value.shape != like.shape else value


def test_a_plan_survives_json():
    for plan in PRESETS.values():
        assert InflationPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("i3dd", "unknown plan 'i3dd'; close names: 'i3d'"),
        ({"kernel": [3]}, "plan: unknown key 'kernel'; close names: 'kernels'"),
        ({"strides": [2, 2]}, "level 0 is the input itself.*strides: \\[1, 2, ...\\]"),
        ({"strides": 2}, "strides is 2; expected a list, one entry a level"),
        ({"strides": []}, "strides is \\[\\]; expected a list"),
        ({"strides": [1, None]}, "strides is \\[1, None\\]; each entry must be an integer of at least 1"),
        ({"strides": [1, 1.5]}, "each entry must be an integer"),
        ({"kernels": "333"}, "kernels is '333'; expected a list"),
        ({"kernels": [0]}, "each entry must be null .* or an integer of at least 1"),
        ({"kernels": [True]}, "at least 1"),
        ({"kernels": ["3"]}, "at least 1"),
        ({"head_pool": 0}, "head_pool is 0"),
        ({"name": 3}, "name is 3; expected a text"),
        ({3: [1]}, "plan: unknown key '3'"),
        (5, "unknown plan '5'; allowed"),
    ],
)
def test_a_wrong_plan_is_refused(plan, message):
    with pytest.raises(InputError, match=message):
        resolve_plan(plan)


@pytest.mark.parametrize("size", [(16, 224), (16, 224, 0), (16.5, 8, 8), "abc", (1, 2, "3"), (True, 2, 2), 16])
def test_a_wrong_size_is_refused(size):
    with pytest.raises(InputError, match=r"input_size is .*; expected three positive whole numbers \(D, H, W\)"):
        resolve_plan("auto", input_size=size)


@pytest.mark.parametrize("spacing", [(1, 1), (1, -1, 1), (1, math.nan, 1), (math.inf, 1, 1), ("5", 1, 1)])
def test_a_wrong_spacing_is_refused(spacing):
    with pytest.raises(InputError, match=r"spacing_mm is .*; expected three positive numbers"):
        resolve_plan("auto", spacing_mm=spacing)


def test_sizes_and_spacings_may_be_lists_and_arrays():
    expected = resolve_plan("auto", input_size=(19, 96, 80), spacing_mm=(5.0, 0.75, 0.75))
    assert resolve_plan("auto", input_size=[19, 96, 80], spacing_mm=np.array([5.0, 0.75, 0.75])) == expected
    assert resolve_plan("auto", input_size=torch.Size([19, 96, 80]), spacing_mm=np.float32([5, 0.75, 0.75])) == expected


def test_a_plan_names_single_layers_of_which_the_last_that_matches_counts():
    plan = InflationPlan.from_dict({"layers": {"layer?.*.conv1": [3, 1], "layer2.0.*": [1, 2]}})
    assert [plan.layer(name) for name in ("layer1.0.conv1", "layer2.0.conv1", "conv1")] == [(3, 1), (1, 2), None]
    assert plan.to_dict()["layers"] == {"layer?.*.conv1": [3, 1], "layer2.0.*": [1, 2]}
    assert InflationPlan.from_dict(plan.to_dict()) == plan
    assert "layers" not in PRESETS["i3d"].to_dict()


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([3], r"layers is \[3\]"),
        ({"a": 3}, r"layers is \{'a': 3\}"),
        ({"a": [3]}, r"\('a', 3\)"),
        ({"a": [0, 1]}, "at least 1"),
    ],
)
def test_layers_that_are_no_kernel_and_stride_are_refused(layers, said):
    with pytest.raises(InputError, match=said):
        InflationPlan.from_dict({"layers": layers})


def test_a_pattern_that_names_no_layer_is_refused():
    with pytest.raises(InputError, match="unknown layer 'layer9'; close names: 'layer"):
        inflate3d.create_model("test_resnet", plan={"layers": {"layer9": [3, 1]}})
