"""Half precision in a publication: half the bytes, float32 again when loaded, and the replay of what was rounded."""

from pathlib import Path

import inflate3d
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.models.publication.tensor_file import read_header, read_tensors

# A replay that does not hold warns.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return inflate3d.create_model("test_resnet", num_classes=3)


@pytest.fixture(scope="module")
def half(net, tmp_path_factory) -> Path:
    return inflate3d.publish(net, str(tmp_path_factory.mktemp("out") / "w"), precision="float16")


def test_kernels_are_halves_and_vectors_are_not(half):
    header = read_header(half / "model.safetensors")
    assert {s.dtype for s in header.values() if len(s.shape) > 1} == {"F16"}
    assert {s.dtype for s in header.values() if len(s.shape) == 1} == {"F32"}


def test_loaded_weights_are_float32_and_the_nearest_halves(net, half):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loaded = inflate3d.create_model(f"local-dir:{half}", pretrained=True)
    for key, value in loaded.state_dict().items():
        assert value.dtype == before[key].dtype
        expected = before[key].half().to(value.dtype) if value.ndim > 1 else before[key]
        assert torch.equal(value, expected), key
        assert torch.equal(net.state_dict()[key], before[key]), "the model that is published stays as it was"


def test_other_channels_are_adapted_in_float32(half):
    stored = read_tensors(half / "model.safetensors")
    grey = inflate3d.create_model(f"local-dir:{half}", pretrained=True, in_chans=1)
    key = next(k for k, v in grey.state_dict().items() if v.ndim == 5)
    torch.testing.assert_close(grey.state_dict()[key], stored[key].float().sum(1, keepdim=True))


def test_the_card_says_so(half):
    assert "stored as float16" in (half / "README.md").read_text(encoding="utf-8")


def test_a_value_beyond_float16_is_refused_by_name(net, tmp_path):
    other = inflate3d.create_model("test_resnet", num_classes=3)
    with torch.no_grad():
        other.get_classifier().weight[0, 0] = 1e5
    with pytest.raises(InputError, match=r"weight holds 1e\+05, but float16 ends at 65504"):
        inflate3d.publish(other, str(tmp_path / "w"), precision="float16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_refused(net, tmp_path):
    with pytest.raises(InputError, match="unknown precision 'float8'; close names"):
        inflate3d.publish(net, str(tmp_path / "w"), precision="float8")
