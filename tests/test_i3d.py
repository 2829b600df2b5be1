"""I3D: torchvision's GoogLeNet inflated with plan i3d has the geometry of Fig. 3 of arXiv:1705.07750.

Receptive fields are measured: with every weight one, normalisation the identity and averaging in place of maxima, the
gradient of one output reaches each input voxel that it can see. Where torchvision's network differs from the paper's:
its pools do not pad but round up (ceil_mode), which shifts windows and leaves receptive fields alone; its "5x5"
branches are 3x3 convolutions, which is what I3D has as well; its second convolution of the stem has BatchNorm.

The figure gives (7, 11, 11), (11, 27, 27) and (23, 75, 75) after the first three max-pools: they are met. It gives
(59, 219, 219) after the fourth and (99, 539, 539) at the end. With the five blocks that it draws between the third and
the fourth, each of which adds 2 steps of 4 frames and of 16 pixels, arithmetic says 23 + 5*8 + 4 = 67 and
75 + 5*32 + 16 = 251; four blocks would give the figure's 59 and 219, and from these two more blocks and the 2x7x7
average pool give its 99 and 539. The network has five: 67, 251 after the fourth pool, 99, 379 after the last block and
107, 571 after the average pool.
"""

from itertools import product

import inflate3d
import pytest
import torch
from nightly import some
from torch import nn
from torchvision import models

# After each stage: the receptive field (D, H, W), and the frames and pixels that 64 frames of 224 x 224 leave.
STAGES = {
    "conv1": ((7, 7, 7), (32, 112, 112)),
    "maxpool1": ((7, 11, 11), (32, 56, 56)),
    "conv3": ((11, 19, 19), (32, 56, 56)),
    "maxpool2": ((11, 27, 27), (32, 28, 28)),
    "inception3b": ((19, 59, 59), (32, 28, 28)),
    "maxpool3": ((23, 75, 75), (16, 14, 14)),
    "inception4d": ((55, 203, 203), (16, 14, 14)),
    "inception4e": ((63, 235, 235), (16, 14, 14)),
    "maxpool4": ((67, 251, 251), (8, 7, 7)),
    "inception5b": ((99, 379, 379), (8, 7, 7)),
}


def ones_net():
    """GoogLeNet with every weight one and averages in place of maxima, inflated with plan i3d."""
    net = models.googlenet(aux_logits=False, init_weights=False).double().eval()
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                window = dict(kernel_size=child.kernel_size, stride=child.stride, padding=child.padding)
                setattr(module, name, nn.AvgPool2d(**window, ceil_mode=child.ceil_mode))
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return inflate3d.inflate(net, example_size=(64, 224, 224), inflation="mean", plan="i3d")


def seen(net, size, axis):
    """For each stage, how many input voxels along an axis the middle output of that stage sees."""
    x = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    outputs = {}
    handles = [
        net.get_submodule(stage).register_forward_hook(lambda _m, _i, y, stage=stage: outputs.update({stage: y}))
        for stage in STAGES
    ]
    net(x)
    for handle in handles:
        handle.remove()
    extents = {}
    for stage, y in outputs.items():
        middle = y[len(y) // 2, :, y.shape[2] // 2, y.shape[3] // 2].sum()  # one clip: the rows are its frames
        (gradient,) = torch.autograd.grad(middle, x, retain_graph=True)
        reached = gradient.abs().sum([d for d in range(5) if d != axis]).nonzero().flatten()
        assert reached[0] > 0, f"{stage}: the clip is too small to tell"
        assert reached[-1] < x.shape[axis] - 1, f"{stage}: the clip is too small to tell"
        extents[stage] = int(reached[-1] - reached[0]) + 1
    return extents


@pytest.mark.slow
def test_receptive_fields_in_time_are_those_of_figure_3():
    assert seen(ones_net(), (136, 32, 32), axis=2) == {stage: field[0] for stage, (field, _) in STAGES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("axis", [3, 4])
def test_receptive_fields_in_space_are_those_of_figure_3(axis):
    size = (9, 448, 32) if axis == 3 else (9, 32, 448)
    assert seen(ones_net(), size, axis) == {stage: field[axis - 2] for stage, (field, _) in STAGES.items()}


def test_the_figures_own_numbers_follow_from_four_blocks_in_its_fourth_group():
    field, step = 23, 4
    after_fourth_pool = field + 4 * 2 * step + step
    assert after_fourth_pool == 59
    assert after_fourth_pool + 2 * 2 * 8 + 8 == 99
    field, step = 75, 16
    after_fourth_pool = field + 4 * 2 * step + step
    assert after_fourth_pool == 219
    assert after_fourth_pool + 2 * 2 * 32 + 6 * 32 == 539


@pytest.mark.slow
def test_64_frames_leave_the_frames_and_pixels_of_the_paper_and_7_windows_of_2():
    with torch.device("meta"):
        net = inflate3d.create_model("torchvision/googlenet", plan="i3d", num_classes=400)
    sizes = {}
    for stage in STAGES:
        net.get_submodule(stage).register_forward_hook(
            lambda _m, _i, y, stage=stage: sizes.update({stage: (y.shape[0], *y.shape[2:])})
        )
    assert net(torch.empty(1, 3, 64, 224, 224, device="meta")).shape == (1, 400)
    assert sizes == {stage: size for stage, (_, size) in STAGES.items()}
    assert net.plan.head_pool == 2  # 8 frames: 7 windows, averaged


@pytest.mark.slow
def test_the_average_pool_takes_windows_of_2_frames():
    torch.manual_seed(0)
    net = inflate3d.create_model("torchvision/googlenet", plan="i3d", num_classes=0).eval()
    clip = torch.randn(1, 3, 24, 64, 64)
    with torch.no_grad():
        features = net.forward_features(clip)
        assert features.shape == (1, 1024, 3, 2, 2)
        pooled = nn.functional.avg_pool3d(features, (2, 2, 2), stride=1).mean((2, 3, 4))
        torch.testing.assert_close(net(clip), pooled, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------- the nets that the literature inflates

LITERATURE = ("resnet50", "densenet121", "vgg11_bn", "inception_v3", "googlenet")


OF_TORCHVISION = [f"torchvision/{name}" for name in LITERATURE]
OF_TIMM = ["resnet50", "densenet121", "vgg11_bn"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plan"),
    some(product([*OF_TORCHVISION, *OF_TIMM], ["i3d", "isotropic"]), product(OF_TORCHVISION, ["i3d"])),
)
def test_the_nets_of_the_literature_answer_as_2d_on_a_static_clip(name, plan):
    def build(plan):
        torch.manual_seed(0)
        return inflate3d.create_model(name, plan=plan, inflation="mean", num_classes=7).eval().double()

    net_2d, net = build("2d"), build(plan)
    frame = torch.randn(1, 3, 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        expected = net_2d(frame)
        error = (net(frame.expand(-1, -1, 17, -1, -1)) - expected).abs().max() / expected.abs().max()
    assert error <= 1e-5  # the weights were drawn and divided in single precision
