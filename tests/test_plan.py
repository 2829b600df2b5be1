"""Plans: presets as their sources say, and `auto` that never collapses a volume."""

import math

import pytest
from inflate3d.errors import InputError
from inflate3d.inflation import PRESETS, InflationPlan, resolve_plan


def test_i3d_strides_are_those_of_figure_3():
    # conv1 /2, first two max-pools keep time, the third and fourth halve it: 64 frames end as 8.
    plan = PRESETS["i3d"]
    assert [plan.stride(level - 1, level) for level in range(1, 6)] == [2, 1, 1, 2, 2]
    assert plan.total_stride == 8
    assert plan.min_depth == 9  # two frames for the 2x7x7 average pool


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 16, 19, 64, 155])
@pytest.mark.parametrize("spacing", [None, (5.0, 0.8, 0.8), (1.0, 1.0, 1.0), (0.5, 1.0, 1.0)])
def test_auto_keeps_two_slices_at_the_deepest_level(depth, spacing):
    plan = resolve_plan("auto", input_size=(depth, 256, 256), spacing_mm=spacing)
    for stride in plan.strides:
        depth_before, depth = depth, math.ceil(depth / stride)
        assert depth >= min(2, depth_before)


def test_auto_leaves_time_alone_while_slices_are_thick():
    plan = resolve_plan("auto", input_size=(64, 256, 256), spacing_mm=(5.0, 0.8, 0.8))
    assert plan.strides[:3] == (1, 1, 1)
    assert plan.kernel(0, 3) == 1  # 5 mm against .8 mm
    assert plan.kernel(5, 3) == 3
    assert plan.total_stride > 1


def test_auto_without_a_size_is_isotropic():
    assert resolve_plan("auto") is PRESETS["isotropic"]


def test_kernels_follow_the_ops_own_size_unless_the_plan_names_one():
    plan = InflationPlan("mine", kernels=(None, 1, 3), strides=(1, 2, 2))
    assert [plan.kernel(0, 7), plan.kernel(1, 7), plan.kernel(2, 7), plan.kernel(9, 7)] == [7, 1, 3, 3]
    assert plan.kernel(2, 1) == 1
    assert plan.stride(0, 2) == 4
    assert plan.stride(2, 5) == 1


def test_a_plan_survives_json():
    for plan in PRESETS.values():
        assert InflationPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("i3dd", "unknown plan 'i3dd'; close names: 'i3d'"),
        ({"kernel": [3]}, "plan: unknown key 'kernel'; close names: 'kernels'"),
        ({"strides": [2, 2]}, "level 0 is the input itself"),
        ({"kernels": [0]}, "at least 1"),
    ],
)
def test_a_wrong_plan_is_refused(plan, message):
    with pytest.raises(InputError, match=message):
        resolve_plan(plan)


def test_a_wrong_size_is_refused():
    with pytest.raises(InputError, match="input_size is \\(16, 224\\)"):
        resolve_plan("auto", input_size=(16, 224))
