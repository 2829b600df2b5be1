"""The page of published weights: an input by a formula that its head takes, and results that the Hub reads."""

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from inflate3d.data.raw.readers import read_volume
from inflate3d.publishing.card import front_matter
from inflate3d.publishing.example_input import example_of

MASK = {"type": "mask", "names": ["background", "liver"]}


def head(dataset="organs", target=MASK, window=(8, 12, 16), **contract):
    """An entry of config.json's heads."""
    spec = {
        **{"media": "volume", "channels": ["hu"], "spacing_mm": [2.0, 1.0, 0.5], "orientation": "LPS"},
        **{"intensity": {"mode": "window", "window": [-100.0, 300.0]}, "domain": dataset},
        **contract,
    }
    window = None if window is None else list(window)
    entry = {"dataset": dataset, "task": "cut", "media": spec["media"], "target": target, "input": spec}
    return {**entry, "window": window}


def config(**heads):
    return {
        "heads": heads,
        "input": next(iter(heads.values()))["input"],
        "classes": None,
        "architecture": "inflate3d/toy",
        "net": {"base": "test_resnet"},
        "training": {},
    }


def test_the_example_lies_as_the_contract_says_and_is_the_same_each_time(tmp_path):
    name, content = example_of(config(organs=head()))
    (tmp_path / "e.nii.gz").write_bytes(content)
    volume = read_volume(tmp_path / "e.nii.gz", orientation=None)
    assert name == "organs"
    assert volume.array.shape == (1, 8, 12, 16)
    assert volume.spacing_mm == (2.0, 1.0, 0.5)
    assert np.sign(np.diag(np.asarray(volume.affine))[:3]).tolist() == [-1, -1, 1]
    assert -100 <= volume.array.min() < -30
    assert 230 < volume.array.max() <= 300
    assert volume.array[0, 4, 6, 9] > volume.array[0, 4, 9, 4] > volume.array[0, 0, 0, 0]  # inner, outer, outside
    assert content == example_of(config(organs=head()))[1]


def test_the_own_segmenter_comes_first_and_other_inputs_have_no_example():
    label = {"type": "class_label", "names": ["a", "b"]}
    heads = {"scans": head("scans", label, None), "organs": head(), "more": head("more")}
    assert example_of({**config(**heads), "input": heads["organs"]["input"]})[0] == "organs"
    assert example_of({**config(**heads), "input": heads["scans"]["input"]})[0] == "scans"
    assert example_of(config(tumour=head(channels=["t1", "t2"]))) is None
    assert example_of(config(clips=head(media="video", channels=["red", "green", "blue"]))) is None


@pytest.mark.parametrize(("address", "name"), [("hf-hub:lab/liver@v2", "liver"), ("local-dir:PATH", "toy")])
def test_the_hub_reads_the_results_of_validation(address, name):
    ill = {**head("scans", {"type": "class_label", "names": ["a", "b"]}, None), "task": "ill"}
    told = config(organs=head(), scans=ill)
    metrics = {"val/cut/organs/dice": 0.87654, "val/ill/scans/auroc": 0.75, "val/score": 0.5}
    told["training"] = {"metrics": metrics, "data": [{"name": "organs"}]}
    text = front_matter(told, address, "cc-by-4.0")
    assert yaml.safe_load(text)["model-index"][0]["results"][0]["dataset"] == {"name": "organs", "type": "organs"}
    data = ModelCard(f"---\n{text}\n---\n").data
    assert data.model_name == name
    results = [(result.task_type, result.metric_type, result.metric_value) for result in data.eval_results]
    assert results == [("image-segmentation", "dice", 0.8765), ("image-classification", "auroc", 0.75)]
    assert (data.license, data.tags, data.base_model) == (
        "cc-by-4.0",
        ["3d", "medical-imaging", "timm"],
        "timm/test_resnet",
    )
