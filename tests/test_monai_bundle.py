"""A MONAI bundle gives the masks of `platform predict`, under MONAI's own command, and says what it is."""

import json
import os

import nibabel
import numpy as np
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import Intensity
from inflate3d.data.raw.readers import read_volume
from inflate3d.data.samples.intensity import Normalise
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answers import onto_grid
from inflate3d.evaluation.prediction.predict import Predictor
from inflate3d.nn import sliding_window
from inflate3d.portable.bundle import INFERENCE, METADATA, NET, WEIGHTS, bundle_files
from inflate3d.portable.part import Part
from inflate3d.portable.whole_volume import WholeVolume
from inflate3d.portable.write import write_portable
from inflate3d.targets.mask import MaskTarget
from torch import nn

SHIPPED = "tf_efficientnet_lite0_3d.v2"
WINDOW = (4, 6, 8)
REGIONS = [{"name": "whole", "labels": ["rim", "core"], "written": "rim"}, {"name": "inner", "labels": ["core"]}]


class ToyShares(nn.Module):
    """Three probabilities of a voxel's neighbourhood and the sum of its two channels."""

    depth_reduction, in_chans_expected = 1, 2

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 3, 3, padding=1)
        torch.manual_seed(0)
        nn.init.normal_(self.conv.weight)

    def forward(self, clip):
        return self.conv(clip).sigmoid()


def toy_part(target=None, **contract):
    """A part as published weights give it: two channels in windows of WINDOW."""
    target = target or MaskTarget(names=("nothing", "rim", "core"))
    given = {
        "channels": ["t1", "t2"],
        "modality": "mri",
        "orientation": "RAS",
        "spacing_mm": None,
        "intensity": {"mode": "zscore", "window": [0, 1], "mean": [0.5], "std": [0.5]},
        **contract,
    }
    facts = {"model": "toy", "head": "tumour", "input": given, "window": list(WINDOW), "window_overlap": 0.5}
    facts |= {"gives": target.describe(), "names": list(target.answers), "target": target.to_dict()}
    card = {"name": "scans", "title": "Scans", "licence": "CC-BY-4.0", "commercial_use": True, "url": "https://a.b"}
    published = {"training": {"data": [{**card, "citation": "A. Uthor"}], "metrics": {"val/tumour/dice": 0.5}}}
    return Part(ToyShares().eval(), 2, WINDOW, None, facts, published)


@pytest.mark.parametrize("size", [(4, 6, 8), (9, 5, 23), (3, 3, 3), (11, 6, 9)])
def test_a_whole_volume_is_answered_as_the_evaluation_view_pads_and_windows_do(size):
    net, x = ToyShares().eval(), torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(1))
    enlarged = np.maximum(size, WINDOW)
    before = (enlarged - size + 1) // 2
    inside = (..., *(slice(b, b + n) for b, n in zip(before.tolist(), size, strict=True)))
    padded = x.amin((2, 3, 4), keepdim=True).repeat(1, 1, *enlarged.tolist())
    padded[inside] = x
    with torch.no_grad():
        expected = sliding_window(padded, net, window=WINDOW, overlap=0.5)[inside]
        got = WholeVolume(net, WINDOW, overlap=0.5, channels=2)(x.transpose(2, 4)).transpose(2, 4)
    torch.testing.assert_close(got, expected)


def test_metadata_states_what_the_schema_wants_and_the_data_behind_the_weights():
    files = bundle_files(toy_part(), toy_part().facts)
    told = json.loads(files[METADATA])
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "task", "description"}
    assert required | {"required_packages_version", "authors", "copyright", "network_data_format"} <= told.keys()
    image, pred = told["network_data_format"]["inputs"]["image"], told["network_data_format"]["outputs"]["pred"]
    assert (image["num_channels"], image["channel_def"]) == (2, {"0": "t1", "1": "t2"})
    assert (image["modality"], pred["channel_def"]["2"]) == ("MR", "core")
    assert (told["references"], told["eval_metrics"]) == (["A. Uthor"], {"val/tumour/dice": 0.5})
    assert "trained on Scans: CC-BY-4.0" in files["LICENSE"]
    assert "| 2 | core |" in files["docs/README.md"]


def test_the_config_reads_as_the_input_contract_says():
    window = {"mode": "window", "window": [-100, 300], "mean": [0.4], "std": [0.2]}
    part = toy_part(spacing_mm=[3.0, 2.0, 1.0], orientation=None, intensity=window, channels=["ct", "ct"])
    config = json.loads(bundle_files(part, part.facts)[INFERENCE])
    steps = {step.pop("_target_"): step for step in config["preprocessing"]["transforms"]}
    assert "Orientationd" not in steps
    assert steps["Spacingd"]["pixdim"] == [1.0, 2.0, 3.0]
    assert (steps["ScaleIntensityRanged"]["a_min"], steps["ScaleIntensityRanged"]["a_max"]) == (-100, 300)
    assert (steps["NormalizeIntensityd"]["subtrahend"], steps["NormalizeIntensityd"]["divisor"]) == ([0.4], [0.2])
    assert config["dataset"]["data"] == "$[{'image': p} for p in sorted(glob.glob(@dataset_dir + '/*.nii*'))]"


def test_labels_are_those_that_predict_writes():
    regions = MaskTarget(names=("nothing", "rim", "core"), regions=REGIONS)
    assert regions.written == {"whole": 1, "inner": 2}
    ignored = MaskTarget(names=("nothing", "unknown", "core"), ignored=("unknown",))
    assert ignored.written == {"nothing": 0, "core": 2}
    steps = json.loads(bundle_files(toy_part(ignored), toy_part(ignored).facts)[INFERENCE])["postprocessing"]
    (mapped,) = [step for step in steps["transforms"] if step["_target_"] == "MapLabelValued"]
    assert (mapped["orig_labels"], mapped["target_labels"]) == ([0, 1], [0, 2])


def test_a_bundle_replaces_an_earlier_one_and_nothing_else(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something else"):
        write_portable(toy_part(), tmp_path / "other", format="monai-bundle")
    with pytest.raises(InputError, match="is a folder; --format torchscript writes a file"):
        write_portable(toy_part(), tmp_path / "other", format="torchscript")
    for _ in range(2):
        written = write_portable(toy_part(), tmp_path / "toy", format="monai-bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "toy"]
    assert written.difference < 1e-5
    held = torch.jit.load(tmp_path / "toy" / NET).state_dict()
    saved = torch.load(tmp_path / "toy" / WEIGHTS, weights_only=True)
    assert held.keys() == saved.keys()
    assert all(torch.equal(held[key], saved[key]) for key in held)


def test_what_is_no_segmenter_is_refused():
    facts = {**toy_part().facts, "gives": "one of 2 classes: a, b"}
    del facts["window"]
    with pytest.raises(InputError, match="toy gives one of 2 classes: a, b; a MONAI bundle is written of a published"):
        bundle_files(toy_part(), facts)


@pytest.fixture
def monai_run(monkeypatch):
    """MONAI's own `run`, and its check of what a net takes and gives, in the bundle's folder."""
    bundle = pytest.importorskip("monai.bundle", reason="pip install 'monai[nibabel,ignite,fire]'")
    for package in ("ignite", "fire"):
        pytest.importorskip(package, reason="pip install 'monai[nibabel,ignite,fire]'")

    def run(folder, images, masks):
        monkeypatch.chdir(folder)
        configs = {"config_file": INFERENCE, "meta_file": METADATA}
        bundle.verify_net_in_out("network", **configs, device="cpu", any=20)
        options = {"dataset_dir": str(images), "output_dir": str(masks), "device": torch.device("cpu")}
        bundle.run(**configs, **options)

    return run


def save(path, array_DHW, affine):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array_DHW.transpose(2, 1, 0), affine), path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_monai_gives_the_masks_of_predict(tmp_path, monai_run):
    draw = np.random.default_rng(0)
    volume = np.kron(draw.normal(size=(5, 10, 6)), np.ones((8, 7, 5))) + draw.normal(size=(40, 70, 30)) / 4
    volume = volume.astype(np.float32)
    save(tmp_path / "images" / "large.nii.gz", volume, np.diag([-1, 1.5, 1, 1]))
    save(tmp_path / "images" / "small.nii.gz", volume[:29, :41, :27].transpose(1, 0, 2), np.eye(4)[[1, 2, 0, 3]])
    to = ["--format", "monai-bundle", "--output", str(tmp_path / "b")]
    assert main(["export", SHIPPED, "--dataset", "hippocampus", *to]) == 0
    Predictor(SHIPPED, tmp_path / "images", dataset="hippocampus").write(tmp_path / "ours")
    monai_run(tmp_path / "b", tmp_path / "images", tmp_path / "theirs")
    for name in ("large.nii.gz", "small.nii.gz"):
        ours, theirs = nibabel.load(tmp_path / "ours" / name), nibabel.load(tmp_path / "theirs" / name)
        np.testing.assert_allclose(theirs.affine, ours.affine)
        a, b = np.asarray(ours.dataobj), np.asarray(theirs.dataobj)
        assert len(np.unique(a)) > 1
        assert (a != b).mean() <= 1e-4, name  # ties of two classes


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_regions_of_two_channels_at_a_spacing_come_out_as_our_own_code_writes_them(tmp_path, monai_run):
    target = MaskTarget(names=("nothing", "rim", "core"), regions=REGIONS)
    part = toy_part(target, spacing_mm=[1.0, 2.0, 1.0])
    net = nn.Sequential(part.net, FirstTwo()).eval()
    write_portable(Part(net, 2, WINDOW, None, part.facts, part.published), tmp_path / "b", format="monai-bundle")
    draw, affine = np.random.default_rng(1), np.diag([-1.0, 2.0, 3.0, 1.0])
    channels = draw.normal(size=(2, 10, 8, 15)).astype(np.float32)
    files = [tmp_path / "images" / f"case_{i:04d}.nii.gz" for i in range(2)]
    for file, array in zip(files, channels, strict=True):
        save(file, array, affine)
    monai_run(tmp_path / "b", tmp_path / "images", tmp_path / "theirs")
    volumes = [read_volume(file, orientation="RAS", spacing_mm=(1.0, 2.0, 1.0)) for file in files]
    image = Normalise(Intensity(mode="zscore"), 2, where="toy")(np.concatenate([v.array for v in volumes]))
    whole = WholeVolume(net, WINDOW, overlap=0.5, channels=2)
    with torch.no_grad():
        answer = whole(torch.from_numpy(image)[None].transpose(2, 4)).transpose(2, 4)
    labels = target.label_map(answer)[0].byte().numpy()
    expected = onto_grid(labels, np.asarray(volumes[0].affine), (15, 8, 10), affine)
    (name,) = os.listdir(tmp_path / "theirs")
    got = np.asarray(nibabel.load(tmp_path / "theirs" / name).dataobj)
    assert sorted(np.unique(expected)) == [0, 1, 2]
    assert (got != expected).mean() <= 1e-3


class FirstTwo(nn.Module):
    """Of three answers the first two."""

    def forward(self, answers):
        return answers[:, :2]
