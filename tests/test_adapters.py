"""Other tools take our nets: every example of docs/adapters.md runs, against the real packages where they are there."""

from __future__ import annotations

import json
import pydoc
import warnings
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch

TEXT = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")


def example(title: str) -> str:
    """The code of one section."""
    return TEXT.partition(f"## {title}\n")[2].partition("```python\n")[2].partition("```")[0]


def run(title: str, **names: Any) -> dict[str, Any]:
    scope: dict[str, Any] = dict(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        exec(compile(example(title), f"docs/adapters.md: {title}", "exec"), scope)
    return scope


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return inflate3d.publish(inflate3d.create_model("test_resnet"), str(tmp_path_factory.mktemp("out") / "w"))


@pytest.mark.parametrize("title", [line[3:] for line in TEXT.splitlines() if line.startswith("## ")][:-1])
def test_examples_are_short(title: str) -> None:
    assert 0 < len([line for line in example(title).splitlines() if line.strip()]) <= 15


@pytest.mark.slow
def test_timm_takes_short_names(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"adaptertest_3d.toy_v1": {"source": f"local-dir:{published}"}}
    (tmp_path / "index.json").write_text(json.dumps({"format": "inflate3d-index/1", "models": models}))
    monkeypatch.setenv("INFLATE3D_INDEX", str(tmp_path / "index.json"))
    import inflate3d.timm

    assert "adaptertest_3d.toy_v1" in inflate3d.timm.register()
    found = run("timm", SHORT_NAME="adaptertest_3d.toy_v1")
    assert found["names"] == ["adaptertest_3d.toy_v1"]
    x = torch.randn(1, 3, 4, 64, 64)
    assert found["model"].eval()(x).shape == (1, 5)
    import timm

    ours = inflate3d.create_model(f"local-dir:{published}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(timm.create_model("adaptertest_3d", pretrained=True).eval()(x), ours(x))


def test_names_entered_into_timm_are_no_2d_names() -> None:
    import inflate3d.timm
    import timm

    assert "tf_efficientnet_lite0_3d" in timm.list_models()
    assert inflate3d.list_models("tf_efficientnet_lite0*") == ["tf_efficientnet_lite0"]
    assert "tf_efficientnet_lite0_3d.v2" in inflate3d.list_pretrained()


@pytest.mark.slow
def test_monais_flexible_unet_takes_an_encoder() -> None:
    pytest.importorskip("monai", reason="pip install 'inflate3d[adapters]'")
    torch.manual_seed(0)
    net = run("MONAI: an encoder in a FlexibleUNet", NAME="resnet10t")["net"].eval()
    x = torch.randn(1, 1, 64, 32, 96)
    with torch.no_grad():
        assert net(x).shape == (1, 3, 64, 32, 96)
        maps = net.encoder(x)
        ours = net.encoder.net.net(x.transpose(2, 4))
    assert [m.shape[2:] for m in maps] == [tuple(reversed(m.shape[2:])) for m in ours]
    assert torch.equal(maps[0], ours[0].transpose(2, 4))


@pytest.mark.slow
def test_an_encoder_that_monais_decoder_cannot_take_is_refused() -> None:
    pytest.importorskip("monai", reason="pip install 'inflate3d[adapters]'")
    from inflate3d.adapters import register_flexible_unet

    with pytest.raises(inflate3d.errors.InputError, match="wants 2, 4, 8"):
        register_flexible_unet("resnet10t", plan="slow")


@pytest.mark.slow
def test_monais_sliding_windows_take_a_segmenter() -> None:
    pytest.importorskip("monai", reason="pip install 'inflate3d[adapters]'")
    found = run("MONAI: sliding windows", NAME="test_resnet", volume=torch.randn(1, 1, 40, 36, 20))
    assert found["logits"].shape == (1, 3, 40, 36, 20)
    x = torch.randn(1, 1, 32, 32, 16)
    with torch.no_grad():  # a flip of X there is a flip of W here
        one = found["net"](x.flip(2))
        other = found["net"].net(x.transpose(2, 4).flip(4))
    assert torch.equal(one, other.transpose(2, 4))


def test_plain_lightning_trains_a_net(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install 'inflate3d[train]'")
    module = run("Plain Lightning", NAME="test_resnet")["Classifier"]()
    before = module.net.get_classifier().weight.clone()
    data = torch.utils.data.TensorDataset(torch.randn(4, 1, 4, 32, 32), torch.tensor([0, 1, 0, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
        trainer = lightning.Trainer(max_steps=2, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    assert not torch.equal(before, module.net.get_classifier().weight)


@pytest.mark.slow
def test_the_hubs_mixin_saves_a_publication_and_loads_it(tmp_path: Path) -> None:
    found = run("Hugging Face Hub", NAME="test_resnet", FOLDER=str(tmp_path / "w"))
    x = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        saved = inflate3d.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()(x)
        assert torch.equal(saved, found["model"].eval()(x))
        assert found["again"].eval()(x).shape == (1, 5)
    found["model"].save_pretrained(tmp_path / "w")  # again, over what is there


def test_nnunets_plans_build_a_segmenter(tmp_path: Path) -> None:
    other = {"network_class_name": "PlainConvUNet", "arch_kwargs": {}, "_kw_requires_import": ["conv_op"]}
    plans = {"plans_name": "nnUNetPlans", "configurations": {"3d_fullres": {"architecture": other, "batch_size": 2}}}
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(plans))
    run("nnU-Net", NAME="test_resnet", FOLDER=str(tmp_path))
    written = json.loads((tmp_path / "inflatedPlans.json").read_text())
    assert written["plans_name"] == "inflatedPlans"
    assert written["configurations"]["3d_fullres"]["batch_size"] == 2
    architecture = written["configurations"]["3d_fullres"]["architecture"]

    def build(deep_supervision: bool) -> Any:
        names = architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"]
        try:
            from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
        except ImportError:  # not installed: what that function does with these values
            return pydoc.locate(names[0])(  # type: ignore[operator]
                input_channels=1, num_classes=3, **names[1], deep_supervision=deep_supervision
            )
        return get_network_from_plans(*names, 1, 3, deep_supervision=deep_supervision)

    net = build(False).eval()
    net.decoder.deep_supervision = False  # as its trainer does
    assert net(torch.randn(1, 1, 40, 56, 40)).shape == (1, 3, 40, 56, 40)
    with pytest.raises(inflate3d.errors.InputError, match="nnUNetTrainerNoDeepSupervision"):
        build(True)
