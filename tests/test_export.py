"""Inflated nets compile, export, train on two processes and in half precision, and copy.

For a ResNet, an EfficientNet-Lite, a ConvNeXt, a ViT and a Swin.
"""

import copy
import pickle
from itertools import product
from pathlib import Path

import inflate3d
import pytest
import torch
from nightly import nightly_but, slow_but, some
from warm_process import WarmProcess

NETS = {
    "test_resnet": {},
    "tf_efficientnet_lite0": {},
    "test_convnext": {},
    "test_vit": {"dynamic_img_size": True},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (2, 2, 2, 2)},
}
SMALL = ("test_vit", "tf_efficientnet_lite0")
SIZE = (6, 64, 64)


def build(name, **options):
    torch.manual_seed(0)
    options = {"plan": "isotropic", "inflation": "mean", "num_classes": 5, **NETS[name], **options}
    return inflate3d.create_model(name, **options).eval()


def clips(batch=2, size=SIZE):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def same(got, expected, tol=1e-4):
    torch.testing.assert_close(got, expected, rtol=tol, atol=tol)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_copies_and_pickles_answer_alike(name):
    net, x = build(name), clips()
    with torch.no_grad():
        expected = net(x)
        other = copy.deepcopy(net)
        assert torch.equal(other(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)
        other(clips(batch=3))  # a copy keeps its own count of clips
        assert torch.equal(net.forward_head(net.forward_features(x)), expected)


@pytest.mark.parametrize("name", slow_but(NETS, 1))
def test_half_precision_stays_near(name):
    net, x = build(name), clips()
    with torch.no_grad():
        expected = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = net(x)
        halves = build(name).half()(x.half())
    scale = expected.abs().max()
    assert autocast.dtype == torch.bfloat16
    assert (autocast.float() - expected).abs().max() <= 0.05 * scale
    assert halves.dtype == torch.float16
    assert (halves.float() - expected).abs().max() <= 0.02 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", nightly_but(NETS, 2))
def test_nets_compile_as_one_graph_forward_and_backward(name):
    torch.compiler.reset()
    net, x = build(name), clips()
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="aot_eager")
    expected, got = net(x), compiled(x)
    same(got, expected)
    expected.square().sum().backward()
    got.square().sum().backward()
    for (key, a), b in zip(net.named_parameters(), compiled.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_resnet_compiles_with_inductor():
    torch.compiler.reset()
    net, x = build("test_resnet"), clips()
    with torch.no_grad():
        same(torch.compile(copy.deepcopy(net), fullgraph=True)(x), net(x))


STEPS = {"slow": 1, "isotropic": 32}  # an exported net with strides along D takes depths that they divide
EXPORTS = list(product(NETS, STEPS, ["strict", "not strict"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan", "mode"),
    some(
        EXPORTS,
        [e for e in EXPORTS if e[0] == "test_resnet" or (e[0] in SMALL and e[1:] == ("isotropic", "not strict"))],
    ),
)
def test_nets_export_with_any_batch_and_depth(name, plan, mode):
    step, strict = STEPS[plan], mode == "strict"
    net, dim = build(name, plan=plan), torch.export.Dim("depth", min=5, max=256)
    depth = dim if step == 1 else step * dim
    axes = {0: torch.export.Dim("batch", min=2, max=16), 2: depth}
    with torch.no_grad():
        example = clips(2, (6 * step, *SIZE[1:]))
        program = torch.export.export(net, (example,), dynamic_shapes=(axes,), strict=strict).module()
        for batch, steps in ((2, 6), (3, 5)):
            x = clips(batch, (steps * step, *SIZE[1:]))
            same(program(x), net(x))


TRAIN_HALF = """
import sys, torch
sys.path.insert(0, {folder!r})
import test_export as t
from torch import nn
rank = int(sys.argv[1])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
net = nn.parallel.DistributedDataParallel(t.build({name!r}))
net(t.clips(4)[2 * rank : 2 * rank + 2]).square().sum().backward()
if rank == 0:
    torch.save({{k: p.grad for k, p in net.module.named_parameters()}}, {results!r})
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_two_processes_give_the_gradients_of_one(name, tmp_path):
    results = str(tmp_path / "gradients.pt")
    code = TRAIN_HALF.format(folder=str(Path(__file__).parent), store=tmp_path / "store", name=name, results=results)
    (tmp_path / "rank.py").write_text(code)
    ranks = [WarmProcess(tmp_path / "rank.py", rank, cwd=tmp_path) for rank in range(2)]
    done = [rank.done() for rank in ranks]
    assert [d.returncode for d in done] == [0, 0], "\n".join(d.stderr for d in done)
    got, net = torch.load(results), build(name)
    net(clips(4)).square().sum().mul(0.5).backward()  # DDP averages over the two
    for key, parameter in net.named_parameters():
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(got[key], parameter.grad, rtol=1e-3, atol=1e-4 * scale + 1e-7, msg=key)
