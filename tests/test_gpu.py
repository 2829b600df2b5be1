"""Our layers on a GPU against float64 on the CPU, and what stands for a GPU without one: counts, and a dry run."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def benchmarks(project_root, monkeypatch):
    """benchmarks/gpu.py as a module, beside the files that it imports."""
    monkeypatch.syspath_prepend(str(project_root / "benchmarks"))
    spec = importlib.util.spec_from_file_location("gpu_benchmark", project_root / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("counted", "inflation"):
        sys.modules.pop(name, None)


# timm_3d 1.0.1's operations of a step, kernels and input channels-last: the measure where it is not installed.
TIMM_3D = {"resnet50": 408, "efficientnet_b0": 629, "convnext_tiny": 392}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM_3D)
def test_a_step_on_a_gpu_launches_and_saves_little(name, benchmarks):
    """At most 1.3 times timm_3d's operations, and no more saved for backward than plain conv3d keeps."""
    counts = sys.modules["counted"].counted(name, (2, 1, 128, 128, 128))
    assert counts["ours"][0] <= 1.3 * TIMM_3D[name]
    assert counts["ours"][1] <= counts["plain conv3d"][1]
    if "timm_3d" in counts:
        assert counts["timm_3d"][0] == TIMM_3D[name]
        assert counts["ours"][1] <= counts["timm_3d"][1]


def test_minimal_filtering_saves_its_input_alone(benchmarks):
    from inflate3d.inflation.convolution import FoldedConv
    from inflate3d.inflation.layers import fold_layer, folding

    conv = torch.nn.Conv2d(8, 8, 3, padding=1)
    conv.weight = torch.nn.Parameter(torch.randn(8, 8, 3, 3, 3))
    fold_layer(conv, FoldedConv, 3, 1)
    x = torch.randn(8, 8, 12, 12, requires_grad=True)
    with folding(2):
        _, saved = sys.modules["counted"].forward_saving(conv, x)
    assert saved == x.untyped_storage().nbytes()


# A GPU machine may have neither these nor a registry (benchmarks/gpu_wheels.sh): importing one is an error here.
WITHOUT = ["av", "nibabel", "SimpleITK", "pydicom", "torchio", "wandb", "monai"]
BARE = f"""
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {WITHOUT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_the_benchmark_runs_through_on_a_bare_machine_with_a_cpu(project_root, tmp_path):
    options = ["--device", "cpu", "--tiny", "--rounds", "1", "--output", "gpu.json"]
    command = [sys.executable, "-P", "-c", BARE, str(project_root / "benchmarks" / "gpu.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert all(row["right"] for row in found["correctness"])
    assert {row["peer"] for row in found["steps"] if "ms" in row} >= {"ours", "plain conv3d"}
    assert [row["heads"] for row in found["fit"]] == [1, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_layers_on_a_gpu_equal_float64_on_the_cpu(precision, benchmarks):
    for name in benchmarks.LAYERS:
        error = benchmarks.layer_error(name, "cuda", precision)
        assert error < benchmarks.TOLERANCE[precision], name


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_tiny"])
def test_one_repeated_image_answers_on_a_gpu_as_in_2d(name, benchmarks):
    assert benchmarks.static_clip_error(name, "cuda") < benchmarks.TOLERANCE["float32"]
