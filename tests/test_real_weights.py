"""Real ImageNet weights on real photos: the 2D answer, and the same answer from a static clip."""

import pytest
import timm
import torch
from inflate3d import create_model
from PIL import Image

pytestmark = pytest.mark.data
NAME = "tf_efficientnet_lite0"
# ImageNet-1k indices of what the photos show.
PHOTOS = {"chelsea.png": 282, "coffee.png": 967, "rocket.jpg": 657, "china.jpg": 698, "flower.jpg": 985}


@pytest.fixture(scope="module")
def overlay(shared_data):
    return {"pretrained_cfg_overlay": {"file": str(shared_data / "weights" / "tf_efficientnet_lite0.in1k.safetensors")}}


@pytest.fixture(scope="module")
def photos(shared_data):
    """(5, 3, 224, 224), by timm's own evaluation transform."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=timm.create_model(NAME)))
    return torch.stack([transform(Image.open(shared_data / "photos" / name).convert("RGB")) for name in PHOTOS])


@pytest.fixture(scope="module")
def answers_2d(overlay, photos):
    net = timm.create_model(NAME, pretrained=True, **overlay).eval()
    with torch.no_grad():
        return net(photos)


def test_the_2d_net_knows_the_photos(answers_2d):
    assert answers_2d.argmax(1).tolist() == list(PHOTOS.values())


@pytest.mark.parametrize("plan", ["isotropic", "i3d"])
@pytest.mark.parametrize("taps", ["mean", "center", "overshoot"])
def test_a_static_clip_of_a_photo_gets_the_2d_logits(overlay, photos, answers_2d, taps, plan):
    net = create_model(NAME, pretrained=True, inflation=taps, plan=plan, **overlay).eval()
    with torch.no_grad():
        answers = net(photos.unsqueeze(2).expand(-1, -1, 10, -1, -1))
    assert ((answers - answers_2d).abs().max() / answers_2d.abs().max()).item() < 1e-4
    assert answers.argmax(1).tolist() == list(PHOTOS.values())
