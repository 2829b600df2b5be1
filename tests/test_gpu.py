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
LARGE, SMALL = (2, 1, 128, 128, 128), (32, 1, 48, 48, 48)
TIMM_3D = {
    ("resnet50", LARGE): 408,
    ("efficientnet_b0", LARGE): 629,
    ("convnext_tiny", LARGE): 392,
    ("convnext_tiny", SMALL): 386,
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), TIMM_3D)
def test_a_step_on_a_gpu_launches_and_saves_little(name, shape, benchmarks):
    """At most 1.3 times timm_3d's operations, and no more saved for backward than plain conv3d keeps."""
    counts = sys.modules["counted"].counted(name, shape)
    assert counts["ours"][0] <= 1.3 * TIMM_3D[name, shape]
    assert counts["ours"][1] <= counts["plain conv3d"][1]
    if "timm_3d" in counts:
        assert counts["timm_3d"][0] == TIMM_3D[name, shape]
        # Of three frames it drops the last at a stride of 2, and saves that much less.
        assert shape == SMALL or counts["ours"][1] <= counts["timm_3d"][1]


@pytest.mark.parametrize(
    ("frames", "groups", "depth", "kernel", "map_size"),
    [(4, 1, 3, 3, 12), (1, 1, 3, 3, 12), (1, 1, 3, 3, 2), (1, 256, 3, 3, 2), (2, 256, 5, 3, 4), (3, 256, 7, 7, 4)],
    ids=["minimal filtering", "one frame", "one frame, small map", "one frame, depthwise", "taps", "rows"],
)
def test_a_convolution_on_a_cpu_saves_its_input_alone(frames, groups, depth, kernel, map_size, benchmarks):
    from inflate3d.inflation.convolution import FoldedConv
    from inflate3d.inflation.layers import fold_layer, folding

    conv = torch.nn.Conv2d(256, 256, kernel, padding=kernel // 2, groups=groups)
    conv.weight = torch.nn.Parameter(torch.randn(256, 256 // groups, depth, kernel, kernel))
    fold_layer(conv, FoldedConv, depth, 1)
    x = torch.randn(frames, 256, map_size, map_size).contiguous(memory_format=torch.channels_last).requires_grad_()
    with folding(1):
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
