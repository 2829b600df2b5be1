"""A net laid by a layout that was kept is the net that a look would have made; no other layout is ever taken."""

import json
from pathlib import Path

import inflate3d
import pytest
import timm
import torch
from inflate3d.inflation import Inflation, InflationError, network, resolve_plan
from inflate3d.inflation.layout import fingerprint
from inflate3d.models import layouts
from nightly import families, slow_but


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a process that has seen no net."""
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path))
    monkeypatch.setattr(layouts, "_memory", {})
    return tmp_path / "layouts"


def create(name: str, **options):
    torch.manual_seed(0)
    net = inflate3d.create_model(name, num_classes=3, **options).eval()
    return net, torch.get_rng_state()


def forget() -> None:
    """As a new process begins."""
    layouts._memory.clear()


def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nets that are looked at from now on."""
    seen: list[str] = []
    own = network.look_at

    def look(net, *rest):
        seen.append(type(net).__name__)
        return own(net, *rest)

    monkeypatch.setattr(network, "look_at", look)
    return seen


def same_nets(name: str, monkeypatch: pytest.MonkeyPatch, **options) -> None:
    looked_at, after = create(name, **options)
    forget()
    seen = looks(monkeypatch)
    laid, after_laid = create(name, **options)
    assert seen == []
    assert torch.equal(after, after_laid)  # whatever is drawn next stays the same
    assert str(laid) == str(looked_at)
    assert laid.feature_info.info == looked_at.feature_info.info
    state = looked_at.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in laid.state_dict().items())
    clip = torch.randn(1, 3, 2 * laid.depth_reduction + 1, *laid.trace_size)
    with torch.no_grad():
        assert torch.equal(laid(clip), looked_at(clip))


@pytest.mark.parametrize(
    ("name", "options"),
    slow_but(
        [
            ("test_resnet", {}),
            ("test_vit", {"attention": "joint"}),
            ("test_resnet", {"inflation": "random"}),
            ("levit_128s", {"plan": "isotropic"}),  # strides that the check moves to another module
            ("torchvision/inception_v3", {"plan": "i3d"}),
        ],
        2,
    ),
)
def test_a_kept_layout_gives_the_same_net_and_the_same_draws(name, options, cache, monkeypatch):
    same_nets(name, monkeypatch, **options)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize("row", families())
def test_every_family_is_laid_as_it_was_looked_at(row, cache, monkeypatch):
    same_nets(row.name, monkeypatch, plan="isotropic")


def test_a_layout_serves_one_net_and_its_arguments_alone(cache, monkeypatch):
    create("test_resnet")
    seen = looks(monkeypatch)
    for options in ({"plan": "slow"}, {"in_chans": 1}, {"statistics": "frame"}, {"output_stride": 16}):
        forget()
        create("test_resnet", **options)
    assert len(seen) == len(list(cache.iterdir())) - 1 == 4


def test_a_damaged_layout_is_not_taken(cache, monkeypatch):
    create("test_resnet")
    (file,) = cache.iterdir()
    whole, seen = file.read_bytes(), looks(monkeypatch)
    for damaged in (b"", whole[:-9], whole.replace(b"layer1", b"layer2", 1), whole.split(b"\n")[1]):
        file.write_bytes(damaged)
        forget()
        create("test_resnet")
        assert file.read_bytes() == whole  # kept anew
    assert len(seen) == 4


def test_a_layout_of_another_net_is_not_taken(cache, monkeypatch):
    create("test_resnet")
    (other,) = cache.iterdir()
    content = other.read_bytes()
    create("test_resnet", plan="slow")
    (file,) = set(cache.iterdir()) - {other}
    file.write_bytes(content)
    forget()
    seen = looks(monkeypatch)
    create("test_resnet", plan="slow")
    assert seen == ["ResNet"]


def test_a_layout_that_gives_another_net_is_refused(cache):
    create("test_resnet")
    (file,) = cache.iterdir()
    values = json.loads(file.read_bytes().split(b"\n", 1)[1])
    values["steps"] = values["steps"][1:]
    content = json.dumps(values).encode()
    file.write_bytes(layouts._seal(file.stem, content) + content)  # as somebody who means it could
    forget()
    with pytest.raises(InflationError, match=r"ResNet: the layout that was kept .* delete the folder `layouts`"):
        create("test_resnet")


def test_a_cache_that_cannot_be_written_is_no_fault(cache, monkeypatch):
    cache.parent.joinpath("file").write_text("")
    monkeypatch.setenv("INFLATE3D_CACHE", str(cache.parent / "file"))
    create("test_resnet")
    seen = looks(monkeypatch)
    create("test_resnet")
    assert seen == []


def test_a_fingerprint_covers_attributes_shapes_and_inflation():
    def of(change=lambda net: None, **words):
        net = timm.create_model("test_resnet")
        change(net)
        value = Inflation.of("center", plan=resolve_plan("isotropic"), **words)
        return fingerprint(net, value, sizes=[(64, 64)], channels=3)

    assert of() == of()
    others = [
        of(lambda net: setattr(net.layer1[0].conv1, "stride", (2, 2))),
        of(lambda net: setattr(net, "fc", torch.nn.Linear(256, 7))),
        of(lambda net: setattr(net.layer1[0], "act1", torch.nn.SiLU())),
        of(lambda net: net.half()),
        of(statistics="frame"),
        of(time_padding="zeros"),
    ]
    assert len({of(), *others}) == 7
