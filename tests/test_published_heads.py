"""Published heads of every type: several of one dataset, a number's, and one that only a plug-in knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import inflate3d
import pytest
import torch
from inflate3d import discover
from inflate3d.contracts import Features, Masks, Values
from inflate3d.errors import InputError
from inflate3d.evaluation.prediction.answerers import answerer_of
from inflate3d.heads.linear import LinearHead
from inflate3d.models import BackboneConfig
from inflate3d.models.headed import HeadedNet
from inflate3d.models.publication.heads import target_of
from inflate3d.models.publication.schema import read_published_config
from inflate3d.nn import Head
from inflate3d.publishing.from_run import publish_run
from inflate3d.targets import ClassTarget, MaskTarget, ValueTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.tasks.regression import Regression
from inflate3d.tasks.volume_classification import VolumeClassification
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from torch import Tensor, nn
from toy_batches import toy_batch, toy_card

CARD = toy_card(
    "scans",
    organ=ClassTarget(("liver", "spleen", "kidney")),
    mask=MaskTarget(("background", "lesion")),
    age=ValueTarget("years", 0, 120),
)
TASKS: dict[str, dict[str, Any]] = {
    "organ": {"class_path": "VolumeClassification", "init_args": {"datasets": ["scans"]}},
    "cut": {"class_path": "MedicalSegmentation", "init_args": {"datasets": ["scans"]}},
    "age": {"class_path": "Regression", "init_args": {"datasets": ["scans"], "scale": 20, "centre": 50}},
}


def write_run(folder: Path, module: MultiTaskModule) -> None:
    """What a fit leaves behind, without the fit."""
    backbone = {"name": "test_resnet", "norm": "group"}
    datasets = {"scans": {"batch_size": 1, "sample": {"patch_size": [16, 32, 32]}}}
    write_config(folder, {"model": {"backbone": backbone, "tasks": TASKS}, "data": {"datasets": datasets}})
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "checkpoints", 7, lambda p: torch.save(state, p), score=0.5, metrics={"val/score": 0.5})


def built(**heads: nn.Module) -> MultiTaskModule:
    """A module over three tasks on one dataset; heads: in place of a task's own."""
    torch.manual_seed(0)
    tasks = {
        "organ": VolumeClassification(datasets=["scans"]),
        "cut": MedicalSegmentation(datasets=["scans"]),
        "age": Regression(datasets=["scans"], scale=20, centre=50),
    }
    module = MultiTaskModule(BackboneConfig("test_resnet", norm="group"), tasks).build({"scans": CARD})
    for name, head in heads.items():
        module.heads[name]["scans"] = module.tasks[name].heads["scans"] = head  # type: ignore[index, attr-defined]
    module.windows = {"scans": (16, 32, 32)}
    return module.eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MultiTaskModule]:
    folder, module = tmp_path_factory.mktemp("run") / "run", built()
    write_run(folder, module)
    return folder, module


@pytest.fixture(scope="module")
def published(run: tuple[Path, MultiTaskModule], tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(publish_run(run[0], str(tmp_path_factory.mktemp("out") / "w"), with_heads=True).folder)


@pytest.mark.slow
def test_heads_of_one_dataset_are_named_by_their_task_and_say_what_they_answer(published: str) -> None:
    config = json.loads((Path(published) / "config.json").read_text())
    assert config["format"] == "inflate3d-weights/2"
    heads = config["heads"]
    assert {n: (h["type"], h["dataset"], h["task"], h["media"]) for n, h in heads.items()} == {
        "scans-organ": ("linear", "scans", "organ", "volume"),
        "scans-cut": ("unet", "scans", "cut", "volume"),
        "scans-age": ("value", "scans", "age", "volume"),
    }
    targets = {"scans-organ": "organ", "scans-cut": "mask", "scans-age": "age"}
    assert {n: target_of(head) for n, head in heads.items()} == {n: CARD.targets[t] for n, t in targets.items()}
    assert heads["scans-age"]["head"] == {"centre": 50.0, "scale": 20.0, "dropout": 0.0}
    assert not any("kind" in entry or "classes" in entry for entry in (config["input"], *heads.values()))
    card = (Path(published) / "README.md").read_text()
    assert "head `scans-age` (volume): a number in years from 0 to 120" in card
    assert 'create_segmenter("local-dir:PATH", pretrained=True, head="scans-cut")' in card


def test_each_loads_and_answers_as_its_task_did(run: tuple[Path, MultiTaskModule], published: str) -> None:
    module, x, name = run[1], torch.randn(2, 1, 16, 32, 32), f"local-dir:{published}"
    rgb = x.expand(-1, 3, -1, -1, -1)
    nets = {
        "organ": inflate3d.create_model(name, pretrained=True, head="scans-organ").eval(),
        "cut": inflate3d.create_segmenter(name, pretrained=True, head="scans-cut").eval(),
        "age": inflate3d.create_model(name, pretrained=True, head="scans-age").eval(),
    }
    with torch.no_grad():
        features = module.backbone(x, domain="scans")
        for task, net in nets.items():
            expected = module.heads[task]["scans"](features)  # type: ignore[index]
            torch.testing.assert_close(net(rgb), expected, rtol=1e-4, atol=1e-4)
    assert nets["organ"].label_names == ["liver", "spleen", "kidney"]
    assert nets["cut"].label_names == ["background", "lesion"]
    assert isinstance(nets["age"], HeadedNet)
    assert nets["age"].label_names == []
    whole = inflate3d.create_segmenter(name, pretrained=True)  # the only one that segments
    assert whole.window == (16, 32, 32)


@pytest.mark.slow
def test_a_run_and_its_publication_answer_alike_window_by_window(
    run: tuple[Path, MultiTaskModule], published: str
) -> None:
    batch = toy_batch(CARD, batch=1, size=(24, 32, 40))
    for name, kind in (("scans-cut", Masks), ("scans-age", Values)):
        answers = []
        for model in (str(run[0]), published):
            answerer = answerer_of(model)
            answerer.prepare(name, torch.device("cpu"), features=False)
            with torch.no_grad():
                answers.append(answerer.answer(batch))
        assert type(answers[0]) is type(answers[1]) is kind
        torch.testing.assert_close(answers[0].tensor, answers[1].tensor, rtol=1e-4, atol=1e-4)
        assert answers[0].tensor.shape == ((1, 2, 24, 32, 40) if kind is Masks else (1,))


# ------------------------------------------------------------------------------------------------ a type of one's own


class ToyTwoLayers(Head):
    """Two linear layers on the pooled features."""

    last_layer: ClassVar[str] = "last."

    def __init__(self, feature_info: Any, num_classes: int, *, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(feature_info.num_pooled, width), nn.Linear(width, num_classes)

    def forward(self, features: Features) -> Tensor:
        return self.last(self.first(features.pooled).relu())

    def describe(self) -> dict[str, Any]:
        return {"num_classes": self.last.out_features, "width": self.first.out_features}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The toy head as a plug-in, until `undo`."""
    known = discover.plug_ins

    def with_toy(group: discover.Group) -> dict[str, discover.PlugIn]:
        own = {"two_layers": discover.PlugIn("two_layers", ToyTwoLayers.__module__, "ToyTwoLayers", "")}
        return {**known(group), **(own if group == "heads" else {})}

    monkeypatch.setattr(discover, "plug_ins", with_toy)
    return monkeypatch


@pytest.mark.slow
def test_a_plug_ins_head_is_published_and_loaded_where_it_is_installed_and_named_where_not(
    tmp_path: Path, installed: pytest.MonkeyPatch
) -> None:
    plain = built()
    head = ToyTwoLayers(plain.backbone.feature_info, 3, width=5)
    module = built(organ=head)

    class ToyTask(VolumeClassification):
        def build_head(self, feature_info: Any, target: Any) -> nn.Module:
            return ToyTwoLayers(feature_info, len(target.names), width=5)

    installed.setitem(TASKS, "organ", {**TASKS["organ"], "class_path": "ToyTask"})
    found = discover.find
    own = type("Found", (), {"load": lambda self: ToyTask})()
    installed.setattr(discover, "find", lambda g, n, **o: own if n == "ToyTask" else found(g, n, **o))
    write_run(tmp_path / "run", module)
    folder = publish_run(tmp_path / "run", str(tmp_path / "w"), with_heads=True).folder
    name, x = f"local-dir:{folder}", torch.randn(1, 3, 8, 32, 32)
    net = inflate3d.create_model(name, pretrained=True, head="scans-organ").eval()
    with torch.no_grad():
        expected = head(module.backbone(x, domain="scans"))
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert net.label_names == ["liver", "spleen", "kidney"]
    installed.undo()
    with pytest.raises(InputError, match=r"head 'scans-organ': unknown head 'two_layers'.*inflate3d\.heads"):
        inflate3d.create_model(name, pretrained=True, head="scans-organ")
    assert inflate3d.create_model(name, pretrained=True, num_classes=0).eval()(x).shape[0] == 1


def test_a_head_that_says_nothing_of_itself_is_refused_by_name(tmp_path: Path) -> None:
    class ToyModule(nn.Linear):
        def forward(self, features: Features) -> Tensor:
            return super().forward(features.pooled)

    from inflate3d.publishing.heads import collect_heads

    module = built()
    for head, message in (
        (ToyModule(module.backbone.feature_info.num_pooled, 3), "'scans-organ' is a ToyModule; derive it from"),
        (type("Unlisted", (LinearHead,), {})(module.backbone.feature_info, 3), "Unlisted is no plug-in"),
    ):
        with pytest.raises(InputError, match=message):
            collect_heads(built(organ=head), {"scans": {}})


# ---------------------------------------------------------------------------------------------------- the first format


def test_the_first_format_is_read_as_todays(published: str, tmp_path: Path) -> None:
    config = json.loads((Path(published) / "config.json").read_text())
    heads = {"scans": config["heads"]["scans-cut"], "kinds": config["heads"]["scans-organ"]}
    old = {**config, "format": "inflate3d-weights/1", "heads": {}}
    for name, kind in (("scans", "volume_segmentation"), ("kinds", "volume_classification")):
        entry = heads[name]
        kept = {k: entry[k] for k in ("type", "task", "window", "window_overlap")}
        old["heads"][name] = {**kept, "kind": kind, "classes": entry["target"]["names"]}
        old["heads"][name]["input"] = {"kind": kind, **{k: v for k, v in entry["input"].items() if k != "media"}}
    old["heads"]["scans"]["channels"] = heads["scans"]["head"]["channels"]
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = read_published_config(tmp_path)
    assert found["format"] == "inflate3d-weights/2"
    assert found["heads"]["scans"] == {**heads["scans"], "target": {"type": "mask", "names": ["background", "lesion"]}}
    linear = {**heads["kinds"], "dataset": "kinds", "head": {"num_classes": 3}}
    assert found["heads"]["kinds"] == linear
    old["heads"]["scans"]["classes"] = 7
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match="is no publication of format 'inflate3d-weights/1'"):
        read_published_config(tmp_path)
