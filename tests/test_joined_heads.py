"""A publication takes the heads of a run that began from it and left its backbone alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import inflate3d
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.publishing import publish_with_heads
from inflate3d.publishing.from_run import split_domains
from inflate3d.targets import MaskTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from safetensors.torch import load_file


def card(name: str, modality: str, channels: int) -> DatasetCard:
    target = MaskTarget(("background", "near", "far"))
    spec = InputSpec(tuple(f"c{i}" for i in range(channels)))
    return DatasetCard(
        *(name, "volume", name, modality, f"http://{name}", "CC-BY-4.0", True, True, ""), {"mask": target}, spec
    )


@dataclass
class Parts:
    own: Path
    run: Path
    module: MultiTaskModule


def make_run(
    folder: Path, own: Path, *, changed: bool = False, named: str = "knee", statistics: float = 0.0
) -> MultiTaskModule:
    """What a fit with a frozen backbone leaves behind, without the fit."""
    backbone = {"name": f"local-dir:{own}", "pretrained": True}
    tasks = {"cut": MedicalSegmentation(datasets=[named])}
    module = MultiTaskModule(BackboneConfig(**backbone), tasks).build({named: card(named, "mri", 1)})  # type: ignore[arg-type]
    if changed:
        with torch.no_grad():
            module.backbone.net.get_submodule("layer1.0.conv1").weight.add_(0.1)  # type: ignore[operator, arg-type]
    for name, value in module.backbone.named_buffers():
        if name.endswith("domain_mean"):
            value += statistics
    written = {"cut": {"class_path": "MedicalSegmentation", "init_args": {"datasets": [named]}}}
    datasets = {named: {"batch_size": 1, "sample": {"patch_size": [16, 16, 16]}}}
    write_config(folder, {"model": {"backbone": backbone, "tasks": written}, "data": {"datasets": datasets}})
    state: dict[str, object] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "checkpoints", 5, lambda p: torch.save(state, p), score=0.5, metrics={"val/score": 0.5})
    return module.eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("parts")
    backbone = Backbone(BackboneConfig("test_resnet", stems={"rgb": 3, "mri": 1}))
    backbone.setup_domains({"clips": card("clips", "rgb", 3), "brain": card("brain", "mri", 1)})
    assert backbone.stem_switch is not None
    with torch.no_grad():
        backbone.stem_switch["mri"].weight.add_(1.0)  # type: ignore[operator, arg-type]
    backbone.train()
    backbone(torch.randn(2, 1, 8, 32, 32) + 3, domain="brain")
    backbone(torch.randn(2, 3, 8, 32, 32) - 3, domain="clips")
    net, extra = split_domains(backbone.eval(), "clips")
    domains = {"clips": "rgb", "brain": "mri"}
    told = {key: value for key, value in net.input_spec.items() if key not in ("plan", "inflation", "versions")}
    spec = {**told, "domain": "clips", "channels": ["c0", "c1", "c2"]}
    own = inflate3d.publish(
        net, str(root / "own"), norm="per_domain", norm_domains=domains, extra_tensors=extra, input_spec=spec
    )
    return Parts(Path(own), root / "run", make_run(root / "run", Path(own)))


def test_heads_of_a_run_go_along_with_weights_that_stay_to_the_bit(parts: Parts, tmp_path: Path) -> None:
    place = tmp_path / "both"
    assert main(["publish", str(parts.own), "--heads-of", str(parts.run), "--output", str(place)]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (parts.own, place))
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert {key.rpartition(".")[0].split(".")[1] for key in after.keys() - before.keys()} == {"knee"}
    x = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        features = parts.module.backbone(x, domain="knee")
        expected = parts.module.heads["cut"]["knee"](features)  # type: ignore[index]
        segmenter = inflate3d.create_segmenter(f"local-dir:{place}", pretrained=True).eval()
        torch.testing.assert_close(segmenter(x), expected)
        same = inflate3d.create_model(f"local-dir:{place}", pretrained=True).eval()
        own = inflate3d.create_model(f"local-dir:{parts.own}", pretrained=True).eval()
        clips = torch.randn(1, 3, 8, 32, 32)
        assert torch.equal(same(clips), own(clips))
    assert segmenter.label_names == ["background", "near", "far"]
    told = (place / "README.md").read_text()
    assert "knee | CC-BY-4.0 | yes | http://knee |" in told
    assert 'Head "knee": trained for 5 steps on these weights, which stayed as they were. Validation: ' in told
    assert "score 0.5000." in told


def test_another_domain_may_lead(parts: Parts, tmp_path: Path) -> None:
    words = ["--heads-of", str(parts.run), "--output", str(tmp_path / "w"), "--domain", "knee"]
    assert main(["publish", str(parts.own), *words]) == 0
    grey, colour = torch.randn(1, 1, 8, 32, 32), torch.randn(1, 3, 8, 32, 32)
    net = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    clips = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, norm_domain="clips").eval()
    brain = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, norm_domain="brain").eval()
    own = inflate3d.create_model(f"local-dir:{parts.own}", pretrained=True).eval()
    theirs = inflate3d.create_model(f"local-dir:{parts.own}", pretrained=True, norm_domain="brain").eval()
    assert net.input_spec["domain"] == "knee"
    with torch.no_grad():
        torch.testing.assert_close(net(grey), parts.module.backbone(grey, domain="knee").pooled)
        assert torch.equal(clips(colour), own(colour))
        torch.testing.assert_close(brain(grey), theirs(grey))
    with pytest.raises(InputError, match="unknown domain 'kne'"):
        publish_with_heads(f"local-dir:{parts.own}", str(parts.run), str(tmp_path / "x"), domain="kne")


def test_heads_of_another_backbone_are_refused_by_the_first_tensor(parts: Parts, tmp_path: Path) -> None:
    make_run(tmp_path / "trained", parts.own, changed=True)
    with pytest.raises(InputError, match=r"its layer1\.0\.conv1\.weight is not that of .*model\.freeze"):
        publish_with_heads(f"local-dir:{parts.own}", str(tmp_path / "trained"), str(tmp_path / "w"))
    make_run(tmp_path / "again", parts.own, named="brain", statistics=1.0)
    with pytest.raises(InputError, match="both have a domain 'brain'"):
        publish_with_heads(f"local-dir:{parts.own}", str(tmp_path / "again"), str(tmp_path / "w"))
    with pytest.raises(InputError, match="it has no heads"):
        publish_with_heads(f"local-dir:{parts.own}", f"local-dir:{parts.own}", str(tmp_path / "w"))
    assert main(["publish", str(parts.run), "--heads-of", str(parts.run), "--output", str(tmp_path / "w")]) == 2
    assert not (tmp_path / "w").exists()
