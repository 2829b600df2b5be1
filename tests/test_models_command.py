"""platform models list|show: at once, by name, with what a plan makes of a net."""

import subprocess
import sys

import pytest
import timm
from inflate3d import create_model, publish
from inflate3d.cli.main import main
from inflate3d.models import list_models
from inflate3d.models.architectures import table
from inflate3d.models.outline import outline


def test_the_table_knows_every_name_that_timm_has_now():
    # What inflate3d.timm may have registered in this process is no 2D net.
    assert {name for name in timm.list_models() if not name.endswith("_3d")} - set(table()) == set()


@pytest.mark.parametrize("name", ["resnet50", "test_vit", "swin_tiny_patch4_window7_224"])
def test_the_tables_parameters_and_levels_are_timms_own(name):
    net = timm.create_model(name)
    assert table()[name].parameters == sum(p.numel() for p in net.parameters())
    assert table()[name].reductions == tuple(dict.fromkeys(e["reduction"] for e in net.feature_info))


def test_a_list_tells_parameters_and_levels(capsys):
    assert main(["models", "list", "*resnet50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "parameters", "levels", "time"]
    (row,) = [line.split() for line in lines if line.startswith("resnet50 ")]
    assert row[1:8] == ["25.6", "M", "2", "4", "8", "16", "32"]


def test_names_alone_are_all_that_create_model_takes(capsys):
    assert main(["models", "list", "--names"]) == 0
    assert set(capsys.readouterr().out.split()) >= set(list_models())


def test_names_of_a_newer_timm_are_listed(capsys, monkeypatch):
    monkeypatch.setattr("inflate3d.cli.models.architectures", lambda package: frozenset({"resnet9000"}))
    assert main(["models", "list", "resnet9000"]) == 0
    assert "?: not in the table (timm " in capsys.readouterr().out


def test_a_list_needs_no_torch():
    command = "from inflate3d.cli.main import main; main(['models', 'list', '*vit*'])"
    code = f"import sys; {command}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_plan_is_shown_level_by_level(capsys):
    words = "models show resnet50 --plan auto --input_size 19,256,256 --spacing_mm 5,0.8,0.8"
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("center taps, frame attention, clip statistics, time padding replicate; ")
    assert "; plan auto: strides along D 1 1 1 1 2 2" in lines[1]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines[3:]]
    assert [row[:5] for row in cells] == [
        ["1", "1 x 7 x 7", "1 x 2 x 2", "19 x 128 x 128", "64"],
        ["2", "3 x 3 x 3", "1 x 2 x 2", "19 x 64 x 64", "256"],
        ["3", "3 x 3 x 3", "1 x 2 x 2", "19 x 32 x 32", "512"],
        ["4", "3 x 3 x 3", "2 x 2 x 2", "10 x 16 x 16", "1024"],
        ["5", "3 x 3 x 3", "2 x 2 x 2", "5 x 8 x 8", "2048"],
    ]


@pytest.mark.slow
def test_an_outline_counts_every_parameter():
    levels = outline("swin_tiny_patch4_window7_224", input_size=(8, 224, 224), plan="2d")
    assert [row.level for row in levels] == [2, 3, 4, 5]
    assert sum(row.parameters for row in levels) == table()["swin_tiny_patch4_window7_224"].parameters


@pytest.mark.parametrize(
    "text", ["{kernels: [3], strides: [1, 2, 2]}", '{"kernels": [3], "strides": [1, 2, 2]}', "a.yaml"]
)
def test_an_explicit_plan_comes_as_text_or_file(text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("kernels: [3]\nstrides: [1, 2, 2]\n")
    assert main(["models", "show", "test_resnet", "--plan", text, "--input_size", "9,64,64"]) == 0
    assert "3 x 16 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plan", "i3dd"], "unknown plan 'i3dd'; close names: 'i3d'"),
        (["--plan", "{strides: [2]}"], "strides[0] is 2; level 0 is the input itself"),
        (["--plan", "{strides"], "which is not valid YAML"),
        (["--plan", "none.yaml"], "no file 'none.yaml'; give a preset"),
        (["--input_size", "19,256"], "expected three numbers such as 19,256,256"),
        (["--input_size", "19,0,256"], "expected three positive whole numbers"),
    ],
)
def test_a_mistake_is_answered_in_one_line(words, message, capsys):
    assert main(["models", "show", "resnet50", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_published_weights_show_their_own_plan_and_taps(tmp_path, capsys, recwarn):
    net = create_model("test_resnet", in_chans=1, plan="slow", inflation="mean", num_classes=0)
    publish(net, f"local-dir:{tmp_path / 'mine'}")
    recwarn.clear()
    assert main(["models", "show", f"local-dir:{tmp_path / 'mine'}", "--input_size", "8,64,64"]) == 0
    head, inflation, *_ = capsys.readouterr().out.splitlines()
    assert "input 8 x 64 x 64" in head
    assert inflation.startswith("mean taps,")
    assert "plan slow:" in inflation
    assert list(recwarn) == []


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        ({"patch_size": [8, 48, 32]}, "8 x 48 x 32"),
        ({"size": [32, 32, 32], "resize": [16, 24, 24]}, "16 x 24 x 24"),
        ({"num_frames": 8, "crop_size": 96}, "8 x 96 x 96"),
        (None, "64 x 224 x 224"),
    ],
)
def test_sizes_are_those_of_what_published_weights_were_trained_on(sample, shown, tmp_path, capsys):
    net = create_model("test_resnet", in_chans=1, plan="slow", num_classes=0)
    contract = {key: net.input_spec[key] for key in ("axes", "channels", "spacing_mm", "orientation", "intensity")}
    media = "video" if "num_frames" in (sample or {}) else "volume"
    told = {} if sample is None else {"sample": sample, "media": media}
    publish(net, f"local-dir:{tmp_path / 'mine'}", input_spec={**contract, **told})
    assert main(["models", "show", f"local-dir:{tmp_path / 'mine'}"]) == 0
    assert f"input {shown} (D x H x W)" in capsys.readouterr().out
