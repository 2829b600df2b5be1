"""Portable files answer as their net does, say what it takes, and appear only if they do."""

import json
import re
from itertools import product
from pathlib import Path

import inflate3d
import nibabel
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.predict import Predictor
from inflate3d.models.architectures import smallest_of_each_family
from inflate3d.portable import formats
from inflate3d.portable.formats import FORMATS, KEY
from inflate3d.portable.part import Part, part_of, part_of_net
from inflate3d.portable.write import shape_of, write_portable
from inflate3d.publishing.from_run import publish_run
from nightly import REPRESENTATIVE, slow_but, some
from run_with_heads import make_run
from torch import nn

SHIPPED = "tf_efficientnet_lite0_3d.v2"
KINDS = {row.family: row.name for row in smallest_of_each_family() if row.family in REPRESENTATIVE}
MATRIX = list(product(sorted(KINDS), ["onnx", "torch-export"]))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "format"), some(MATRIX, [("vision_transformer", "torch-export")]))
def test_unlike_architectures_leave_and_answer_alike(family, format, tmp_path):
    torch.manual_seed(0)
    net = inflate3d.create_model(KINDS[family], plan="slow", num_classes=5).eval()
    part = part_of_net(net, (3, *net.trace_size))
    part = Part(part.net, part.channels, part.size, None, part.facts)  # depth as it is: free ones have their own test
    written = write_portable(part, tmp_path / "file", format=format)
    clip = torch.randn(3, 3, *part.size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        got, expected = FORMATS[format].load(written.path)(clip), net(clip)
    print(family, net.net_spec.name, format, written.free, f"{written.difference:.1e}", flush=True)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1)


class ToyMean(nn.Module):
    """Logits of three classes: a clip's means times 1, 2 and 3; depth_reduction frames are one step."""

    depth_reduction, in_chans_expected, input_spec, label_names = 2, 1, {"channels": ["mri"]}, ["a", "b", "c"]

    def forward(self, clip):
        return clip.mean((1, 2, 3, 4))[:, None] * torch.arange(1.0, 4, dtype=clip.dtype)


class ToyOfOneDepth(ToyMean):
    """One whose answer hangs on a depth that a tracer takes for a constant."""

    def forward(self, clip):
        return super().forward(clip) * int(clip.shape[2])


@pytest.mark.parametrize("format", slow_but(["torchscript", "torch-export", "onnx"], 1))
def test_batch_and_depth_are_free_where_the_file_then_answers_alike(format, tmp_path):
    written = write_portable(part_of_net(ToyMean(), (4, 2, 2)), tmp_path / "mean", format=format)
    assert written.free == ("batch", "depth")
    assert written.facts["shape"] == ["batch", 1, "2*depth", 2, 2]
    clip = torch.randn(5, 1, 8, 2, 2)
    torch.testing.assert_close(FORMATS[format].load(written.path)(clip), ToyMean()(clip))


def test_a_depth_that_a_trace_fixes_is_stated_as_fixed(tmp_path):
    written = write_portable(part_of_net(ToyOfOneDepth(), (4, 2, 2)), tmp_path / "one", format="torchscript")
    assert written.facts["shape"] in (["batch", 1, 4, 2, 2], ["batch", 1, "2*depth", 2, 2])
    clip = torch.randn(3, 1, 8 if "depth" in written.free else 4, 2, 2)
    torch.testing.assert_close(torch.jit.load(written.path)(clip), ToyOfOneDepth()(clip))


def test_depths_between_the_steps_are_fixed():
    part = part_of_net(ToyMean(), (3, 2, 2))
    assert shape_of(part, ("batch",)) == ["batch", 1, 3, 2, 2]
    assert part.depth_step == 2


def test_the_facts_travel_in_the_file(tmp_path):
    path = write_portable(part_of_net(ToyMean(), (4, 2, 2), title="toy"), tmp_path / "f", format="torchscript").path
    extra = {KEY: ""}
    torch.jit.load(path, _extra_files=extra)
    facts = json.loads(extra[KEY])
    assert facts["format"] == "inflate3d-portable/1"
    assert (facts["model"], facts["names"], facts["gives"]) == ("toy", ["a", "b", "c"], "logits")
    assert facts["input"] == {"channels": ["mri"]}


def test_a_file_that_answers_otherwise_never_appears(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.TorchScript, "load", lambda self, path: lambda clip: torch.jit.load(path)(clip) + 2e-4)
    with pytest.raises(InputError, match=r"toy: cannot leave as torchscript .*differs from the net's by 0.0002"):
        write_portable(part_of_net(ToyMean(), (4, 2, 2), title="toy"), tmp_path / "f", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def told(capsys, *arguments):
    """The message of a command that must end with 2."""
    assert main(["export", *arguments]) == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def several_heads(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    return f"local-dir:{publish_run(make_run(folder / 'run').folder, str(folder / 'w'), with_heads=True).folder}"


def test_what_is_missing_is_named(tmp_path, capsys, monkeypatch, several_heads):
    to = ("--output", str(tmp_path / "f"))
    assert "unknown format 'onx'; close names: 'onnx'" in told(capsys, SHIPPED, "--format", "onx", *to)
    message = told(capsys, several_heads, "--format", "torchscript", *to)
    assert "has several heads; name one by --dataset: clips" in message
    message = told(capsys, SHIPPED, "--format", "torchscript", "--dataset", "hippo", *to)
    assert "unknown dataset 'hippo'; close names: 'hippocampus'" in message
    window = ("--dataset", "hippocampus", "--input_size", "32,32,32")
    assert "answers in windows of (32, 48, 32)" in told(capsys, SHIPPED, "--format", "torchscript", *window, *to)
    assert "give one: --input_size D,H,W" in told(capsys, "test_resnet", "--format", "torchscript", *to)
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxscript" else name)
    message = told(capsys, SHIPPED, "--format", "onnx", *to)
    assert message == "error: --format onnx needs onnxscript: pip install 'inflate3d[export]'\n"
    nowhere = ("--dataset", "hippocampus", "--output", str(tmp_path / "no" / "f"))
    assert "no folder" in told(capsys, SHIPPED, "--format", "torchscript", *nowhere)


def test_a_published_head_gives_its_answer_and_its_contract(several_heads):
    part = part_of(several_heads, dataset="clips")
    assert part.facts["names"] == ["jump", "run", "wave", "sit"]
    assert part.facts["input"]["modality"] == "rgb"
    assert (part.channels, part.size) == (3, (8, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(part.net(torch.zeros(2, 3, *part.size)).sum(1), torch.ones(2))


@pytest.mark.nightly
@pytest.mark.slow
def test_the_example_of_the_docs_gives_the_masks_of_predict(tmp_path, monkeypatch, project_root):
    text = (Path(project_root) / "docs" / "publishing.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json\n.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    monkeypatch.chdir(tmp_path)
    arguments = ["--dataset", "hippocampus", "--format", "onnx", "--output", "hippocampus.onnx"]
    assert main(["export", SHIPPED, *arguments]) == 0
    draw = np.random.default_rng(0)
    volume = np.kron(draw.normal(size=(5, 10, 6)), np.ones((8, 7, 5))) + draw.normal(size=(40, 70, 30)) / 4
    volume = volume.astype(np.float32)  # D and H of several windows, W below one
    nibabel.save(nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.eye(4)), "case.nii.gz")
    Predictor(SHIPPED, "case.nii.gz", dataset="hippocampus").write("masks")
    (mask,) = Path("masks").glob("*.nii.gz")
    expected = np.asarray(nibabel.load(mask).dataobj).transpose(2, 1, 0)
    names = {"volume": volume}
    exec(code, names)
    assert len(np.unique(expected)) > 1
    assert (names["mask"] != expected).mean() <= 1e-4  # ties of two classes
