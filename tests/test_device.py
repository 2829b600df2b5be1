"""What a fit does by default on a GPU, as far as a CPU can show it, and compiled backbones."""

from types import SimpleNamespace

import pytest
import torch
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.sample import Batch
from inflate3d.training import DataModule
from inflate3d.training.device import DeviceDefaults, Trainer, channels_last, cuda_defaults, lay_state_as_weights
from inflate3d.training.optim import fuse
from inflate3d.training.run.folder import read_environment, record_environment
from torch import nn
from toy_batches import toy_batch, toy_card


def test_kernels_lie_channels_last_and_keep_their_values():
    net = nn.Sequential(nn.Conv3d(2, 3, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 2))
    before = {name: p.clone() for name, p in net.named_parameters()}
    channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])


def test_an_optimiser_goes_on_where_weights_lie_otherwise():
    """As the same steps with weights that lie as they lay: what it keeps is brought to their layout."""
    nets = [nn.Conv3d(2, 3, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1) for net in nets]
    x = torch.linspace(-1, 1, 2 * 2 * 4**3).view(2, 2, 4, 4, 4)
    for step in range(3):
        if step == 2:
            channels_last(nets[1])
            lay_state_as_weights(optimizers[1])
            state = optimizers[1].state[nets[1].weight]
            assert {state[key].stride() for key in ("exp_avg", "exp_avg_sq")} == {nets[1].weight.stride()}
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(nets[1].weight, nets[0].weight)


def test_cuda_defaults_keep_what_was_chosen(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    trainer = type("ToyTrainer", (), {"datamodule": type("ToyData", (), {"datasets": dict.fromkeys(range(9))})})
    try:
        torch.set_float32_matmul_precision("medium")
        said = cuda_defaults(trainer)
        assert torch.get_float32_matmul_precision() == "medium"
        assert not torch.backends.cudnn.benchmark  # nine shapes are many
        torch.set_float32_matmul_precision("highest")
        trainer.datamodule.datasets = {"one": None}
        cuda_defaults(trainer)
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before)
    assert "cudnn.benchmark is False (9 shapes in training)" in said


def test_what_is_on_is_noted_in_the_last_start(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    net = nn.Conv3d(2, 3, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    words = dict(precision="bf16-mixed", gradient_clip_val=1.0, compile=True, is_global_zero=True)
    trainer = SimpleNamespace(strategy=strategy, optimizers=[optimizer], default_root_dir=str(tmp_path), **words)
    DeviceDefaults().on_train_start(trainer, net)
    assert not list(tmp_path.iterdir())  # no run is kept there
    record_environment(tmp_path, device="cpu")
    for device in ("cpu", "cuda"):
        strategy.root_device = torch.device(device)
        if device == "cuda":
            fuse(optimizer)
            channels_last(net)
        record_environment(tmp_path, device=device)
        DeviceDefaults().on_train_start(trainer, net)
    first, *starts = read_environment(tmp_path)
    assert "settings" not in first
    expected = {"precision": "bf16-mixed", "gradient_clip_val": 1.0, "compile": True}
    for start, is_on in zip(starts, (False, True), strict=True):
        assert start["settings"].items() >= expected.items()
        for name in ("cudnn_benchmark", "channels_last", "copies_do_not_block", "fused_optimizer"):
            assert start["settings"][name] is is_on, name


def test_batches_move_to_cuda_without_waiting(monkeypatch):
    asked = []
    monkeypatch.setattr(Batch, "to", lambda self, *args, **kwargs: asked.append(kwargs) or self)
    data = DataModule("nowhere", {"toy": {"batch_size": 1}})
    for device in ("cuda", "cpu"):
        data.transfer_batch_to_device(toy_batch(toy_card()), torch.device(device), 0)
    assert asked == [{"non_blocking": True}, {"non_blocking": False}]


@pytest.mark.slow
def test_a_compiled_backbone_answers_and_learns_as_the_same(monkeypatch, tmp_path):
    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: torch_compile(f, backend="aot_eager"))
    torch.compiler.reset()
    module = nn.Module()
    module.backbone = Backbone(BackboneConfig(name="test_resnet", stems={"ct": 1}))
    module.backbone.setup_domains({"toy": toy_card()})
    module.double()
    image = torch.randn(2, 1, 4, 32, 32, dtype=torch.float64)
    found = []
    for compiles in (False, True):
        options = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path, "enable_checkpointing": False}
        DeviceDefaults().on_fit_start(Trainer(compile=compiles, enable_model_summary=False, **options), module)
        assert (module.backbone._compiled_call_impl is not None) == compiles
        features = module.backbone(image, domain="toy")
        loss = features.pooled.square().sum() + sum(m.square().mean() for m in features.maps)
        module.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters() if p.grad is not None)])
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
