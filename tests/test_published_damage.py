"""Published directories that lie or are somebody's own: refused in one line before memory is taken, and left alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.publication.allocation import build_within
from inflate3d.models.publication.integrity import check_files
from inflate3d.models.publication.replay import check_replay
from inflate3d.nn.heads import head_type
from inflate3d.publishing.destination import parse_destination
from inflate3d.publishing.export import deliver_whole
from nightly import slow_but
from safetensors.torch import load_file, save_file
from signing import change, sign

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = inflate3d.create_model("test_resnet", num_classes=0, plan="2d")
    return Path(inflate3d.publish(net, str(tmp_path_factory.mktemp("out") / "weights")))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mine"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        inflate3d.create_model(f"local-dir:{folder}", pretrained=True)
    assert len(str(raised.value).splitlines()) == 1


def changed_weights(edit: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    def change_file(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")
        sign(folder)

    return change_file


@pytest.mark.parametrize(
    ("edit", "said"),
    slow_but(
        [
            (lambda t: t.pop("conv1.0.weight"), r"no tensor for \['conv1\.0\.weight'\]"),
            (lambda t: t.update({"extra.weight": torch.zeros(3)}), r"no place for \['extra\.weight'\]"),
            (lambda t: t.update({"norm_domains.mr.bn1.running_mean": torch.zeros(32)}), "no place for"),
            (lambda t: t.update({"stems.ct.weight": torch.zeros(8, 1, 1, 3, 3)}), "no place for"),
            (
                lambda t: t.update({"bn1.weight": t["bn1.weight"].to(torch.int8)}),
                r"bn1\.weight is I8, the net wants torch\.",
            ),
            (
                lambda t: t.update({"bn1.num_batches_tracked": torch.tensor(1.0)}),
                r"bn1\.num_batches_tracked is F32, the net wants torch\.int64",
            ),
            (
                lambda t: t.update({"bn1.bias": t["bn1.bias"][:-1].clone()}),
                r"bn1\.bias has shape \(\d+,\), the net wants",
            ),
            (lambda t: t.update({"bn1.bias": torch.zeros(10**7)}), r"bn1\.bias has shape \(10000000,\), the net wants"),
        ],
        3,
    ),
    ids=["missing", "extra", "unnamed domain", "unnamed stem", "integers", "a real count", "shorter", "vast"],
)
def test_weights_that_are_not_the_nets_are_refused(copy: Path, edit: Callable[[Tensors], Any], said: str) -> None:
    changed_weights(edit)(copy)
    refused(copy, said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    slow_but(
        [
            ({"input": torch.zeros(1, 3, 20_000, 1, 1), "features": torch.zeros(1, 96)}, "at most 1024 frames"),
            ({"input": torch.zeros(512, 3, 8, 1, 1), "features": torch.zeros(1, 96)}, "at most 1024 frames"),
            ({"input": torch.zeros(1, 1, 2, 4096, 4096), "features": torch.zeros(1, 96)}, "16777216 pixels"),
            ({"input": torch.zeros(1, 3, 8, 8, 8), "features": torch.zeros(1, 2**22 + 1)}, "4194304 features"),
            ({"input": torch.zeros(1, 4, 8, 32, 32), "features": torch.zeros(1, 96)}, "the net takes 3 channels"),
            ({"input": torch.zeros(1, 3, 0, 32, 32), "features": torch.zeros(1, 96)}, "the net takes 3 channels"),
            (
                {"input": torch.zeros(3, 8, 32, 32), "features": torch.zeros(1, 96)},
                r"expected `input` \(B, C, D, H, W\)",
            ),
            ({"input": torch.zeros(1, 3, 8, 32, 32)}, r"and `features` \(B, N\)"),
            ({"input": torch.zeros(1, 3, 8, 32, 32).long(), "features": torch.zeros(1, 96)}, "expected F32"),
        ],
        4,
    ),
)
def test_a_replay_that_no_net_publishes_is_refused_before_its_forward(copy: Path, tensors: Tensors, said: str) -> None:
    save_file(tensors, copy / "replay.safetensors")
    net = inflate3d.create_model("test_resnet", num_classes=0, plan="2d")
    with pytest.raises(InputError, match=said):
        check_replay(net, copy)


def test_a_replay_that_the_net_does_not_take_is_one_line(copy: Path) -> None:
    save_file({"input": torch.zeros(1, 3, 2, 33, 40), "features": torch.zeros(1, 64)}, copy / "replay.safetensors")
    net = inflate3d.create_model("test_vit", num_classes=0)
    with pytest.raises(InputError, match=r"does not take its input \(1, 3, 2, 33, 40\): "):
        check_replay(net, copy)


HEAD = {"type": "linear", "task": "t", "dataset": "d", "head": {"num_classes": 2}}


@pytest.mark.parametrize(
    ("edit", "said"),
    slow_but(
        [
            (lambda c: c["net"].update(num_classes=10**9), r"num_classes is '1000000000'; expected"),
            (lambda c: c["net"].update(num_classes=900_000), "refused before the memory was taken"),
            (lambda c: c["net"].update(in_chans=10**7), "in_chans is '10000000'; expected"),
            (lambda c: c["net"].update(base_kwargs={"channels": [10**7] * 4}), "expected a number of at most 65536"),
            (lambda c: c["net"].update(base_kwargs={"channels": [60_000] * 4}), "refused before the memory was taken"),
            (lambda c: c.update(heads={"d": {**HEAD, "head": {"channels": [10**7]}}}), "expected a number of at most"),
            (lambda c: c.update(heads={"d": {**HEAD, "window": [4096, 4096, 4096]}}), "at most 268435456 voxels"),
            (lambda c: c.update(training={"data": [{"name": "x"}]}), "'licence' is missing"),
            (lambda c: c.update(training={"data": "all of it"}), "data is 'all of it'; expected a list"),
        ],
        3,
    ),
)
def test_a_config_that_asks_for_absurd_sizes_is_refused(copy: Path, edit: Callable[[Any], Any], said: str) -> None:
    change(copy, edit)
    refused(copy, said)


@pytest.mark.parametrize(
    ("type_name", "described"),
    [
        ("linear", {"num_classes": 60_000}),
        ("unet", {"num_classes": 2, "channels": [60_000] * 3}),
        ("unet", {"num_classes": 60_000, "channels": [4096] * 3}),
    ],
)
def test_a_head_of_absurd_widths_takes_no_memory(type_name: str, described: dict[str, Any]) -> None:
    cls, info = head_type(type_name, where="test"), _Levels()
    with pytest.raises(InputError, match="refused before the memory was taken"):
        build_within(lambda: cls.rebuild(described, info), 2**22, where="test")  # type: ignore[arg-type, return-value]


class _Levels:
    num_pooled = 60_000

    def channels(self) -> list[int]:
        return [64, 1280, 60_000]

    def reduction_dhw(self) -> list[tuple[int, int, int]]:
        return [(1, 4, 4), (1, 8, 8), (1, 16, 16)]


@pytest.mark.parametrize("byte", range(8))
def test_no_bit_of_a_list_of_hashes_can_flip_unseen(copy: Path, byte: int) -> None:
    content = (copy / "SHA256SUMS").read_bytes()
    lines = content.split(b"\n")
    places = [0, 63, 64, 66, 67, len(lines[0]) - 1, len(lines[0]), len(content) - 2]  # digits, blanks, names, ends
    changed = bytearray(content)
    for bit in range(8):
        changed[places[byte]] = content[places[byte]] ^ (1 << bit)
        (copy / "SHA256SUMS").write_bytes(changed)
        with pytest.raises(InputError):
            check_files(copy)


@pytest.mark.parametrize("name", ["model.safetensors", "replay.safetensors"])
@pytest.mark.parametrize("cut", slow_but([0, 7, 8, 100, -1], 2))
def test_a_file_that_is_cut_short_is_refused(copy: Path, name: str, cut: int) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:cut])
    refused(copy, f"{name} has changed")
    sign(copy)
    refused(copy, f"{name} is not a safetensors file")


def rot(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def as_hub_cache(base: Path, whole: Path) -> Path:
    (base / "blobs").mkdir(parents=True)
    return Path(shutil.copytree(whole, base / "snapshots" / "mine"))


def as_our_cache(base: Path, whole: Path) -> Path:
    folder = Path(shutil.copytree(whole, base / "weights" / "place" / file_sha256(whole / "SHA256SUMS")[:32]))
    (folder.parent / "latest").write_text(folder.name)
    return folder


def linked_from_blobs(base: Path, whole: Path) -> Path:
    folder = as_hub_cache(base, whole)
    (folder / "model.safetensors").rename(base / "blobs" / "abc")
    (folder / "model.safetensors").symlink_to("../../blobs/abc")
    return folder


@pytest.mark.parametrize(
    "place", slow_but([as_hub_cache, as_our_cache, linked_from_blobs, lambda base, whole: base / "plain"], 2)
)
def test_a_damaged_folder_of_the_users_own_is_left_whatever_it_looks_like(
    whole: Path, tmp_path: Path, place: Callable[[Path, Path], Path]
) -> None:
    folder = place(tmp_path / "backup", whole)
    if not folder.exists():
        shutil.copytree(whole, folder)
    (folder / "my_notes.txt").write_text("of the user")
    rot(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        refused(folder, r"has changed: .*Publish or download the directory again")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("foreign", ["my_notes.txt", "checkpoints/last.ckpt", ".git/HEAD", "model.onnx", ".DS_Store"])
def test_a_publication_with_files_of_somebody_is_not_replaced(copy: Path, foreign: str) -> None:
    (copy / foreign).parent.mkdir(exist_ok=True)
    (copy / foreign).write_text("of the user")
    with pytest.raises(InputError, match=rf"holds something else \({foreign.partition('/')[0]}\)"):
        parse_destination(f"local-dir:{copy}")
    assert (copy / foreign).read_text() == "of the user"


def test_folders_of_somebody_beside_a_destination_are_left(copy: Path) -> None:
    beside = [copy.with_name(name) for name in (".tmp-mine", ".old-mine")]
    for folder in beside:
        folder.mkdir()
        (folder / "notes.txt").write_text("of the user")

    def write(staging: Path) -> None:
        shutil.copytree(copy, staging, dirs_exist_ok=True)
        (staging / "README.md").write_text("another card")
        sign(staging)

    _, changed = deliver_whole(parse_destination(str(copy)), write)
    assert changed
    assert (copy / "README.md").read_text() == "another card"
    assert [(folder / "notes.txt").read_text() for folder in beside] == ["of the user"] * 2
    assert sorted(path.name for path in copy.parent.iterdir()) == [".old-mine", ".tmp-mine", "mine"]


def test_a_write_that_fails_leaves_the_older_publication_and_no_litter(copy: Path) -> None:
    before = file_sha256(copy / "SHA256SUMS")

    def write(staging: Path) -> None:
        (staging / "config.json").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        deliver_whole(parse_destination(str(copy)), write)
    assert file_sha256(copy / "SHA256SUMS") == before
    assert [path.name for path in copy.parent.iterdir()] == ["mine"]
