"""A forward leaves nothing behind: threads, checkpointing, copies, exports, traces and transforms do not meet."""

import copy
import io
import threading

import inflate3d
import pytest
import timm
import torch
from inflate3d.contracts import DatasetCard, InputSpec
from inflate3d.errors import InputError
from inflate3d.inflation import folding, show_map
from inflate3d.inflation.call import telling, told
from inflate3d.models import Backbone, BackboneConfig
from inflate3d.targets import ClassTarget
from nightly import slow_but
from timm.layers import set_fused_attn, set_reentrant_ckpt
from timm.utils import reparameterize_model
from torch.func import functional_call, grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

CHECKPOINTING = [
    *("test_resnet", "test_vit", "test_vit2", "test_convnext", "test_convnext2", "test_efficientnet"),
    *("test_efficientnet_gn", "test_efficientnet_ln", "test_mambaout", "test_nfnet", "test_byobnet", "densenet121"),
]


def build(name="test_resnet", **options):
    torch.manual_seed(0)
    return inflate3d.create_model(name, **{"num_classes": 3, "inflation": "mean", "plan": "slow", **options}).eval()


def clips(net, batch, frames):
    side = max(32, *net.trace_size)
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, frames, side, side, generator=generator).to(next(net.parameters()))


def gradients(net, loss):
    net.zero_grad()
    loss().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.fixture
def reentrant():
    """Let timm checkpoint in the older way."""
    set_reentrant_ckpt(True)
    yield
    set_reentrant_ckpt(False)


def check_checkpointing(name):
    small = {"block_config": (2, 2, 2, 2), "growth_rate": 8} if name == "densenet121" else {}
    net = build(name, **small).double()
    xs = [clips(net, *shape) for shape in ((2, 4), (4, 2), (1, 3))]

    def loss():
        return sum(net(x).square().sum() for x in xs)

    plain = gradients(net, loss)
    net.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(net, loss), plain)


@pytest.mark.parametrize("name", slow_but(CHECKPOINTING, 2))
def test_checkpointing_takes_any_forwards_before_the_backward(name):
    check_checkpointing(name)


@pytest.mark.slow
@pytest.mark.usefixtures("reentrant")
@pytest.mark.parametrize("name", slow_but(CHECKPOINTING[:6], 1))
def test_reentrant_checkpointing_takes_any_forwards_before_the_backward(name):
    check_checkpointing(name)


@pytest.mark.slow
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_whole_net_that_checkpoints_can_be_checkpointed(use_reentrant):
    net = build().double()
    xs = [clips(net, *shape).requires_grad_() for shape in ((2, 4), (4, 2))]
    plain = gradients(net, lambda: sum(net(x).square().sum() for x in xs))
    net.set_grad_checkpointing(True)
    again = gradients(net, lambda: sum(checkpoint(net, x, use_reentrant=use_reentrant).square().sum() for x in xs))
    torch.testing.assert_close(again, plain)


def test_hooks_of_others_around_a_checkpointing_net_do_their_work():
    net, seen = build(), []
    net.set_grad_checkpointing(True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.append(x) or x.detach(), lambda x: x):
        loss = net(clips(net, 2, 4)).square().sum()
    loss.backward()
    assert seen


def test_a_tensor_changed_before_the_backward_is_noticed_where_a_net_checkpoints():
    net = build("test_vit")
    net.set_grad_checkpointing(True)
    loss = net(clips(net, 1, 2)).square().sum()
    with torch.no_grad():
        net.norm.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_part_alone_must_be_told_its_clips():
    net = build()
    seen = []
    handle = net.layer1.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    net(clips(net, 2, 2))
    handle.remove()
    frames = seen[0]
    with pytest.raises(InputError, match=r"outside of its net's forward.*folding\(batch_size\)"):
        net.layer1(frames)
    with folding(2):
        assert net.layer1(frames).shape[0] == 4


def test_what_is_told_ends_with_its_block_and_stays_in_its_thread():
    seen = []
    with telling("word", 1):
        with telling("word", 2):
            assert told("word") == 2
        thread = threading.Thread(target=lambda: seen.append(told("word")))
        thread.start()
        thread.join()
        assert told("word") == 1
    assert told("word") is None
    assert seen == [None]


def in_threads(*calls, times=10):
    """Run calls at once, many times each; return what each thread gave."""
    answers = [[] for _ in calls]
    start = threading.Barrier(len(calls))

    def run(index):
        start.wait()
        with torch.no_grad():
            answers[index].extend(calls[index]() for _ in range(times))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(a) for a in answers] == [times] * len(calls)
    return answers


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext2", "test_efficientnet_gn"])
def test_threads_with_unlike_shapes_get_their_own_answers(name):
    net = build(name)
    xs = [clips(net, 1, 4), clips(net, 2, 2)]
    with torch.no_grad():
        expected = [net(x) for x in xs]
    for answers, right in zip(in_threads(*(lambda x=x: net(x) for x in xs)), expected, strict=True):
        for answer in answers:
            torch.testing.assert_close(answer, right, rtol=1e-4, atol=1e-5)


def two_domains(**options):
    def card(name, modality, channels):
        names = tuple(f"c{i}" for i in range(channels))
        rights = dict(url="", licence="CC0-1.0", commercial_use=True, weights_may_be_published=True)
        return DatasetCard(
            name=name,
            media="volume",
            title=name,
            modality=modality,
            targets={"label": ClassTarget(("a", "b"))},
            citation="",
            input=InputSpec(channels=names),
            **rights,
        )

    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig("test_resnet", plan="slow", stems={"rgb": 3, "mri": 1}, **options))
    backbone.setup_domains({"clips": card("clips", "rgb", 3), "brain": card("brain", "mri", 1)})
    for buffer_name, buffer in backbone.named_buffers():
        if "domain_" in buffer_name:
            buffer[1].uniform_(0.5, 2)
    return backbone


def test_threads_with_unlike_domains_get_their_own_answers():
    backbone = two_domains().eval()
    inputs = {"clips": torch.randn(1, 3, 4, 32, 32), "brain": torch.randn(2, 1, 2, 32, 32)}
    calls = [lambda d=d, x=x: backbone(x, domain=d).pooled for d, x in inputs.items()]
    with torch.no_grad():
        expected = [call() for call in calls]
    for answers, right in zip(in_threads(*calls), expected, strict=True):
        for answer in answers:
            torch.testing.assert_close(answer, right, rtol=1e-4, atol=1e-5)


def test_forwards_of_two_domains_before_one_backward_are_recomputed_each_in_its_own():
    backbone = two_domains().double().eval()
    inputs = {"clips": torch.randn(1, 3, 4, 32, 32), "brain": torch.randn(2, 1, 2, 32, 32)}

    def loss():
        return sum(backbone(x.double(), domain=d).pooled.square().sum() for d, x in inputs.items())

    plain = gradients(backbone, loss)
    backbone.net.set_grad_checkpointing(True)
    torch.testing.assert_close(gradients(backbone, loss), plain)


def test_statistics_land_in_the_row_of_their_domain_and_layers_stay_as_they_were():
    backbone = two_domains().train()
    norms = [m for m in backbone.modules() if hasattr(m, "domain_mean")]
    before = [(norm.domain_mean.clone(), norm.running_mean) for norm in norms]
    backbone(torch.randn(2, 1, 4, 32, 32), domain="brain")
    for norm, (mean, running) in zip(norms, before, strict=True):
        assert torch.equal(norm.domain_mean[0], mean[0])
        assert not torch.equal(norm.domain_mean[1], mean[1])
        assert norm.running_mean is running


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext2", "test_mambaout"])
def test_an_empty_batch_answers_empty(name):
    net = build(name, plan="isotropic")
    full, empty = clips(net, 2, 5), clips(net, 2, 5)[:0]
    with torch.no_grad():
        for method in ("forward", "forward_features"):
            assert getattr(net, method)(empty).shape == (0, *getattr(net, method)(full).shape[1:])
        got, expected = (net.forward_intermediates(x, intermediates_only=True) for x in (empty, full))
    assert [m.shape[1:] for m in got] == [m.shape[1:] for m in expected]


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
def test_export_leaves_a_net_that_copies_saves_and_answers(strict):
    net = build(plan="2d")
    x, other = clips(net, 2, 4), clips(net, 3, 6)
    dims = {0: torch.export.Dim("B", min=2, max=8), 2: torch.export.Dim("D", min=2, max=32)}
    exported = torch.export.export(net, (x,), dynamic_shapes={"x_BCDHW": dims}, strict=strict).module()
    torch.save(net, io.BytesIO())
    with torch.no_grad():
        torch.testing.assert_close(exported(other), net(other), rtol=1e-4, atol=1e-5)
        assert torch.equal(copy.deepcopy(net)(x), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", slow_but(["test_resnet", "test_efficientnet", "test_vit"], 1))
def test_a_trace_holds_for_other_batches_and_depths(name):
    net = build(name, plan="isotropic")
    with torch.no_grad():
        traced = torch.jit.trace(net, clips(net, 1, 8), check_trace=False)
        for shape in ((1, 8), (2, 8), (1, 5), (4, 2), (1, 16)):
            x = clips(net, *shape)
            torch.testing.assert_close(traced(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", slow_but(["test_resnet", "test_efficientnet", "test_convnext2"], 1))
def test_torch_func_gives_the_gradients_of_autograd(name):
    net = build(name).double()
    x = clips(net, 2, 3)
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def loss(parameters, clip):
        return functional_call(net, (parameters, buffers), (clip[None],)).square().sum()

    expected = [gradients(net, lambda c=c: net(c[None]).square().sum()) for c in x]
    torch.testing.assert_close(grad(loss)(parameters, x[0]), expected[0], rtol=1e-6, atol=1e-9)
    each = vmap(grad(loss), (None, 0))(parameters, x)
    for key, value in each.items():
        torch.testing.assert_close(value, torch.stack([e[key] for e in expected]), rtol=1e-6, atol=1e-9)
    step = 1e-6
    _, slope = jvp(net, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, (net(x + step) - net(x - step)) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["double", "bfloat16"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_classifier_is_put_back_in_the_nets_own_dtype(name, how):
    net = getattr(build(name), how)()
    net.reset_classifier(7)
    assert {p.dtype for p in net.parameters()} == {next(net.parameters()).dtype}
    assert net(clips(net, 1, 2)).shape == (1, 7)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repghostnet_050", "mobileone_s0"])
def test_fusing_kernels_over_frames_is_refused_with_the_remedy(name):
    with pytest.raises(InputError, match="Fuse the 2D net"):
        reparameterize_model(build(name))


@pytest.mark.slow
def test_a_fused_2d_net_inflates():
    torch.manual_seed(0)
    net_2d = reparameterize_model(timm.create_model("repghostnet_050", num_classes=3).eval())
    x = torch.randn(1, 3, 1, 64, 64)
    with torch.no_grad():
        got = inflate3d.inflate(net_2d, example_size=(2, 64, 64))(x.expand(-1, -1, 2, -1, -1))
        torch.testing.assert_close(got, net_2d(x[:, :, 0]), rtol=1e-4, atol=1e-5)


def test_joint_attention_without_fused_attention_is_refused():
    net = build("test_vit", attention="joint")
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with pytest.raises(InputError, match="attention='joint'"):
        net(clips(net, 1, 2))
    set_fused_attn(False)
    try:
        with pytest.raises(InputError, match="set_fused_attn"):
            build("test_vit", attention="joint")
    finally:
        set_fused_attn(True)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "edgenext_xx_small"])
def test_joint_attention_is_refused_where_no_layer_could_join_frames(name):
    with pytest.raises(InputError, match="which no layer of this net calls; take attention='frame'"):
        build(name, attention="joint")


def test_a_shown_map_is_the_clips_own_and_changes_nothing():
    net = build()
    x = clips(net, 2, 4)
    expected, keys, seen = net(x), list(net.state_dict()), []
    place = show_map(net, "layer3")
    net.get_submodule(place).register_forward_hook(lambda _m, _x, y: seen.append(y))
    net.layer3.register_forward_hook(lambda _m, _x, y: seen.append(y))
    assert torch.equal(copy.deepcopy(net)(x), expected)
    seen.clear()
    net(x)
    assert list(net.state_dict()) == keys
    assert seen[0].shape[:3] == (2, seen[1].shape[1], 4)
    assert torch.equal(seen[0].transpose(1, 2).flatten(0, 1), seen[1])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.channels_last_3d])
def test_memory_formats_of_both_kinds_fit_and_change_no_answer(name, memory_format):
    net = build(name)
    x = clips(net, 1, 3)
    with torch.no_grad():
        expected = net(x)
        assert net.to(memory_format=memory_format) is net
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    kernels = [p for p in net.parameters() if p.ndim in formats]
    assert all(p.is_contiguous(memory_format=formats[p.ndim]) for p in kernels)


def test_another_patch_size_is_refused_and_another_image_size_is_not():
    net = build("test_vit")
    with pytest.raises(InputError, match="patch_size=8"):
        net.set_input_size(patch_size=8)
    net.set_input_size(img_size=96)
    assert net(torch.randn(1, 3, 2, 96, 96)).shape == (1, 3)


def test_a_segmenter_names_the_option_that_it_does_not_take():
    with pytest.raises(InputError, match="'encoder_depth'"):
        inflate3d.create_segmenter("test_resnet", num_classes=2, encoder_depth=3)
    with pytest.raises(InputError, match="at least two"):
        inflate3d.create_segmenter("test_resnet", num_classes=1)
    segmenter = inflate3d.create_segmenter("test_resnet", num_classes=2).to(memory_format=torch.channels_last).eval()
    assert segmenter(torch.randn(1, 3, 3, 17, 19)).shape == (1, 2, 3, 17, 19)
