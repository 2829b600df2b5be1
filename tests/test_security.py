"""Twelve attacks on a published directory (docs/security.md): each is refused before it costs or does anything."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.errors import InputError
from inflate3d.models.publication.allocation import AllocationLimit
from loopback_servers import faulty
from signing import change, sign

ROOT = Path(__file__).parents[1]


class Bomb:
    """Unpickling it writes a file: what must never happen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = inflate3d.create_model("test_resnet", num_classes=0)
    return inflate3d.publish(net, str(tmp_path_factory.mktemp("out") / "weights"))


@pytest.fixture
def victim(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "weights"))


def tensors_of(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def refused(folder: Path, message: str) -> None:
    with pytest.raises(InputError, match=message):
        inflate3d.create_model(f"local-dir:{folder}", pretrained=True)


def test_attack_1_a_pickle_called_safetensors_is_not_unpickled(victim: Path, tmp_path: Path) -> None:
    for content in (pickle.dumps(Bomb(tmp_path / "ran")), pickle.dumps(Bomb(tmp_path / "ran"), protocol=0)):
        for name in ("model.safetensors", "replay.safetensors"):
            before = (victim / name).read_bytes()
            (victim / name).write_bytes(content)
            sign(victim)
            refused(victim, "is not a safetensors file: it begins with")
            (victim / name).write_bytes(before)
    assert not (tmp_path / "ran").exists()


def test_attack_2_further_files_are_neither_fetched_nor_opened(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pytorch_model.bin", "modeling_evil.py", "config.yaml"):
        (victim / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    sign(victim)
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with faulty(victim.parent) as (url, handler):
        inflate3d.create_model(f"{url}/weights", pretrained=True)
        assert not [t for t in handler.taken if t.split()[0].endswith((".bin", ".py", ".yaml"))]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["../../outside", "/etc/passwd", "..", "a/../b", "..\\outside", ".hidden", "model.safetensors\x00", "ü.json", ""],
)
def test_attack_3_names_that_lead_elsewhere_are_refused(victim: Path, name: str) -> None:
    with (victim / "SHA256SUMS").open("a", encoding="utf-8") as file:
        file.write(f"{'0' * 64}  {name}\n")
    refused(victim, "does not name a file of the directory")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_attack_4_links_out_of_the_directory_are_refused(victim: Path, tmp_path: Path, name: str) -> None:
    shutil.move(victim / name, tmp_path / "secret")
    (victim / name).symlink_to(tmp_path / "secret")
    refused(victim, "is a link out of the directory")


def test_attack_5_a_device_or_a_pipe_is_not_waited_for(victim: Path) -> None:
    (victim / "model.safetensors").unlink()
    os.mkfifo(victim / "model.safetensors")
    refused(victim, "is no regular file")
    (victim / "model.safetensors").unlink()
    (victim / "model.safetensors").symlink_to("/dev/zero")
    refused(victim, "is no regular file")


@pytest.mark.parametrize(
    ("shape", "span", "message"),
    [
        ([2**40, 2**20], [0, 8], "cannot have 8 bytes"),
        ([2**62, 2**62, 4], [0, 0], "cannot have 0 bytes"),
        ([-1, 2], [0, 8], "has shape"),
        ([2], [0, 2**50], "cannot have"),
        ([1] * 1000, [0, 4], "has shape"),
        ([2**31], [0, 2**33], "the file has 8 for them"),
    ],
)
def test_attack_6_absurd_tensor_shapes_take_no_memory(
    victim: Path, shape: list[int], span: list[int], message: str
) -> None:
    entry = {"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": span}}
    (victim / "model.safetensors").write_bytes(tensors_of(entry, bytes(8)))
    sign(victim)
    refused(victim, message)


def test_attack_6_overlapping_tensors_and_vast_headers_are_refused(victim: Path) -> None:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    (victim / "model.safetensors").write_bytes(tensors_of({"a": one, "b": one}, bytes(8)))
    sign(victim)
    refused(victim, "overlap or leave gaps")
    (victim / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + bytes(100))
    sign(victim)
    refused(victim, "is not a safetensors file")


def test_attack_7_a_zip_bomb_is_no_weights_and_nothing_is_unpacked(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(10**7))
    (victim / "model.safetensors").write_bytes(packed.getvalue())
    sign(victim)
    refused(victim, r"begins with b'PK")
    # And one that the server would have the client unpack on arrival.
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with faulty(victim.parent, ["gzip"]) as (url, _), pytest.raises(InputError, match="arrives compressed"):
        inflate3d.create_model(f"{url}/weights", pretrained=True)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("checkpoint_path", "/tmp/x.pth", "may not come from a published directory"),
        ("pretrained_cfg_overlay", {"file": "x.pth"}, "may not come from a published directory"),
        ("pretrained_cfg", {"url": "http://x"}, "may not come from a published directory"),
        ("act_layer", "__import__('os')", "a short plain word"),
        ("channels", [10**9], "a number of at most"),
        ("channels", [[[[[1]]]]], "shallower"),
        ("not a name", 1, "may not come"),
    ],
)
def test_attack_8_arguments_that_load_files_or_run_code_are_refused(
    victim: Path, name: str, value: Any, message: str
) -> None:
    change(victim, lambda c: c["net"]["base_kwargs"].update({name: value}))
    refused(victim, message)


@pytest.mark.parametrize(
    "base", ["hf-hub:evil/net", "local-dir:/tmp", "../../etc", "http://x/y", "a/b/c", "torchvision/.."]
)
def test_attack_8_a_base_that_is_a_place_is_refused(victim: Path, base: str) -> None:
    change(victim, lambda c: c["net"].update(base=base))
    refused(victim, "base is|unknown model")


def test_attack_9_a_description_of_a_vast_net_is_refused_before_its_memory_is_taken(victim: Path) -> None:
    change(
        victim, lambda c: c["net"].update(base="vit_tiny_patch16_224", base_kwargs={"embed_dim": 49152, "depth": 64})
    )
    refused(victim, "refused before the memory was taken")
    change(victim, lambda c: c["net"]["plan"].update(kernels=[10**6]))
    refused(victim, r"kernels\[0\] is '1000000'; expected a whole number in 1\.\.128")
    with AllocationLimit(1000, where="here"), pytest.raises(InputError, match="more than 1000 numbers"):
        torch.nn.Linear(10**6, 10**6)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": NaN}', '{"a": 1', "\x00", '"' + "x" * 2**23 + '"', '{"format": "inflate3d-weights/1"}'],
)
def test_attack_10_hostile_json_is_refused(victim: Path, text: str) -> None:
    (victim / "config.json").write_text(text)
    sign(victim)
    refused(victim, "config.json")


def test_attack_11_yaml_object_tags_run_nothing(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = f"!!python/object/apply:os.mknod ['{tmp_path / 'ran'}']"
    (victim / "README.md").write_text(f"---\nlicense: {tag}\n---\n")
    sign(victim)
    inflate3d.create_model(f"local-dir:{victim}", pretrained=True)  # a card is text for people
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"model: {tag}\n")
    (tmp_path / "x.npy").write_bytes(b"")
    assert main(["predict", str(tmp_path / "run"), "--input", str(tmp_path / "x.npy"), "--output", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_attack_12_a_changed_file_is_refused_and_a_changed_answer_told(victim: Path) -> None:
    data = bytearray((victim / "model.safetensors").read_bytes())
    data[-3] ^= 0x40
    (victim / "model.safetensors").write_bytes(data)
    refused(victim, "has changed: sha256")
    sign(victim)  # signed anew: the weights are others than those of the replay
    with pytest.warns(UserWarning, match=r"replay differs by .*got \[.*stored \["):
        inflate3d.create_model(f"local-dir:{victim}", pretrained=True)


# --------------------------------------------------------------------------------- older and newer directories


def test_a_directory_of_timm_is_told_from_one_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18", "pretrained_cfg": {}}))
    refused(tmp_path, "2D weights of timm; load them by timm's own name, such as 'resnet18'")


def test_what_a_newer_version_says_beside_is_ignored(victim: Path) -> None:
    change(victim, lambda c: c.update(later={"more": 1}))
    inflate3d.create_model(f"local-dir:{victim}", pretrained=True)


def test_the_table_in_the_docs_names_twelve_attacks_and_their_tests() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == 12
    for row in rows:
        assert f"def test_attack_{row.split('|')[1].strip()}_" in Path(__file__).read_text(encoding="utf-8")
