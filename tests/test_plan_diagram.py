"""The diagram of a plan says what `platform models show` says, one row a plan."""

from pathlib import Path

import pytest
from inflate3d.cli.main import main
from inflate3d.evaluation.pictures.plan_diagram import PlanRow, draw_plans
from inflate3d.models.outline import outline
from matplotlib.image import imread

SIZE = (16, 64, 64)


def words(axes: object) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]  # type: ignore[attr-defined]


def test_each_level_has_its_size_kernel_and_stride() -> None:
    levels = outline("test_resnet", input_size=SIZE, plan="i3d")
    (axes,) = draw_plans([PlanRow("i3d", levels)], title="test_resnet", input_size=SIZE).axes
    said = words(axes)
    assert said[0] == "input  16 x 64 x 64"
    for level in levels:
        size, kernel, stride = (" x ".join(map(str, v)) for v in (level.size, level.kernel, level.stride))
        assert f"/{2**level.level}  {size}\n{level.channels} channels" in said
        assert f"kernel {kernel}\nstride {stride}" in said
    assert len(axes.patches) == 3 * (1 + len(levels))  # three faces a box


def test_plans_stand_below_each_other_at_one_scale() -> None:
    rows = [PlanRow(plan, outline("test_resnet", input_size=SIZE, plan=plan)) for plan in ("2d", "isotropic")]
    above, below = draw_plans(rows, title="test_resnet", input_size=SIZE).axes
    assert (above.get_xlim(), above.get_ylim()) == (below.get_xlim(), below.get_ylim())
    assert all("stride 1 x" in text for text in words(above) if "stride" in text)
    assert any("stride 2 x 2 x 2" in text for text in words(below))


@pytest.mark.slow
def test_the_command_writes_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.png"
    plans = ["slow", "{kernels: [1, 3], strides: [1, 2]}"]
    arguments = ["plot", "plan", "test_resnet", "--input_size", "16,64,64", "--output", str(picture), "--plan", *plans]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"picture: {picture}\n")
    assert imread(picture)[..., :3].min() < 1
    assert main(["plot", "plan", "resnet5", "--output", str(picture)]) == 2
    assert "close names" in capsys.readouterr().err
