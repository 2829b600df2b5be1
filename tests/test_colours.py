"""Weights that were trained on grey volumes alone still tell colours apart as their 2D weights did."""

from __future__ import annotations

from pathlib import Path

import inflate3d
import pytest
import timm
import torch
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.models.publication.layout import COLOUR_KEY
from inflate3d.nn.stems import COLOUR_PART, adapt_channels, colour_part_of, first_conv_path
from inflate3d.publishing import publish_run
from inflate3d.targets import MaskTarget
from inflate3d.tasks.medical_segmentation import MedicalSegmentation
from inflate3d.training import MultiTaskModule, write_config
from inflate3d.training.checkpoints.store import write_checkpoint
from safetensors.torch import load_file, save_file


def card(modality: str, channels: int) -> DatasetCard:
    spec = InputSpec(tuple(f"c{i}" for i in range(channels)))
    told = (modality, "volume", modality, modality, f"http://{modality}", "CC-BY-4.0", True, True, "")
    return DatasetCard(*told, {"mask": MaskTarget(("background", "near"))}, spec)


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """A file of 2D weights."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("flat") / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), file)
    return file


def begun_from(flat: Path) -> dict[str, object]:
    return {"name": "test_resnet", "pretrained": True, "timm_kwargs": {"pretrained_cfg_overlay": {"file": str(flat)}}}


def run_on(
    modalities: dict[str, int], folder: Path, backbone: dict[str, object], *, older: bool = False
) -> MultiTaskModule:
    """What a fit on volumes leaves behind, without the fit; older: as before checkpoints held a colour part."""
    backbone = {**backbone, "stems": modalities}
    tasks = {"cut": MedicalSegmentation(datasets=list(modalities))}
    cards = {name: card(name, count) for name, count in modalities.items()}
    module = MultiTaskModule(BackboneConfig(**backbone), tasks).build(cards)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, value in module.backbone.named_parameters():
            value += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
    written = {"cut": {"class_path": "MedicalSegmentation", "init_args": {"datasets": list(modalities)}}}
    datasets = {name: {"batch_size": 1, "sample": {"patch_size": [16, 16, 16]}} for name in modalities}
    write_config(folder, {"model": {"backbone": backbone, "tasks": written}, "data": {"datasets": datasets}})
    state = {"state_dict": {k: v for k, v in module.state_dict().items() if not (older and k.endswith(COLOUR_PART))}}
    module.on_save_checkpoint(state)
    write_checkpoint(folder / "checkpoints", 5, lambda p: torch.save(state, p), score=0.5, metrics={"val/score": 0.5})
    return module.eval()


@pytest.fixture(scope="module")
def published(flat, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("run")
    run_on({"mri": 1, "ct": 1}, folder, begun_from(flat))
    publish_run(folder, f"local-dir:{folder / 'out'}")
    return f"local-dir:{folder / 'out'}"


def stem_of(net: torch.nn.Module) -> torch.Tensor:
    return net.get_parameter(f"{first_conv_path(net)}.weight").detach()


def test_grey_and_colours_make_the_kernel_of_rgb_again():
    kernel = torch.randn(4, 3, 3, 5, 5)
    grey = adapt_channels(kernel, 1)
    torch.testing.assert_close(adapt_channels(grey, 3, colour_part_of(kernel)), kernel)
    assert colour_part_of(grey) is None


@pytest.mark.parametrize("domain", ["mri", "ct"])
def test_weights_of_volumes_answer_grey_clips_as_volumes_and_tell_colours_as_before(published, flat, domain, caplog):
    grey = inflate3d.create_model(published, pretrained=True, norm_domain=domain).eval()
    rgb = inflate3d.create_model(published, pretrained=True, norm_domain=domain, in_chans=3).eval()
    before = inflate3d.create_model("test_resnet", pretrained=True, pretrained_cfg_overlay={"file": str(flat)})
    clip = torch.randn(2, 1, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(rgb(clip.expand(-1, 3, -1, -1, -1)), grey(clip), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(colour_part_of(stem_of(rgb)), colour_part_of(stem_of(before)), rtol=1e-5, atol=1e-6)
    assert not torch.equal(stem_of(rgb).sum(1), stem_of(before).sum(1))
    assert "taken from 1 to 3 channels, colours as in the 2D weights" in caplog.text


def test_a_training_on_clips_begins_with_those_colours_beside_grey(published):
    backbone = Backbone(BackboneConfig(published, pretrained=True, stems={"rgb": 3, "mri": 1}))
    backbone.setup_domains({"clips": card("rgb", 3), "scans": card("mri", 1)})
    expected = inflate3d.create_model(published, pretrained=True, in_chans=3)
    torch.testing.assert_close(backbone.stem_switch["rgb"].weight, stem_of(expected))
    assert backbone.stem_switch.colour_part is None


def test_colours_outlive_a_second_training_on_volumes_and_a_publication_by_hand(published, tmp_path):
    run_on({"us": 1}, tmp_path / "run", {"name": published, "pretrained": True})
    publish_run(tmp_path / "run", f"local-dir:{tmp_path / 'again'}", precision="float16")
    by_hand = inflate3d.publish(inflate3d.create_model(published, pretrained=True), f"local-dir:{tmp_path / 'hand'}")
    first = load_file(Path(published.removeprefix("local-dir:")) / "model.safetensors")[COLOUR_KEY]
    for folder in (tmp_path / "again", by_hand):
        kept = load_file(folder / "model.safetensors")[COLOUR_KEY]
        torch.testing.assert_close(kept.float(), first, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("start", ["older", "random", "clips"])
def test_where_there_are_no_colours_none_are_made_up(start, flat, tmp_path):
    backbone = {"name": "test_resnet", "pretrained": False} if start == "random" else begun_from(flat)
    stems = {"mri": 1, **({"rgb": 3} if start == "clips" else {})}
    run_on(stems, tmp_path / "run", backbone, older=start == "older")
    publish_run(tmp_path / "run", f"local-dir:{tmp_path / 'out'}")
    assert COLOUR_KEY not in load_file(tmp_path / "out/model.safetensors")
    three = stem_of(inflate3d.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, in_chans=3))
    assert torch.equal(three[:, 0], three[:, 2])


def test_a_plan_with_other_kernels_takes_the_colours_along(published):
    backbone = Backbone(BackboneConfig(published, pretrained=True, stems={"rgb": 3}, plan="slow"))
    backbone.setup_domains({"clips": card("rgb", 3)})
    whole = inflate3d.create_model(published, pretrained=True, in_chans=3)
    kernels = [stem_of(whole), backbone.stem_switch["rgb"].weight.detach()]
    assert kernels[0].shape[2] != kernels[1].shape[2]
    torch.testing.assert_close(kernels[1].sum(2), kernels[0].sum(2))


def test_a_colour_part_of_another_shape_is_refused(published, tmp_path):
    folder = Path(published.removeprefix("local-dir:"))
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, COLOUR_KEY: tensors[COLOUR_KEY][:, :2].contiguous()}, tmp_path / "model.safetensors")
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    (tmp_path / "SHA256SUMS").write_text("".join(f"{file_sha256(tmp_path / name)}  {name}\n" for name in names))
    with pytest.raises(InputError, match=r"stems\.colour_part has shape"):
        inflate3d.create_model(f"local-dir:{tmp_path}", pretrained=True)
