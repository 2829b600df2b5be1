"""Files of weights from elsewhere: fetched once, brought to safetensors once, and never run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.publication.places import parse_hub_file
from inflate3d.models.sources.weight_files import local_file, read_weights
from loopback_servers import faulty, hub_stand_in
from safetensors.torch import save_file

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(2)}


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def check(found):
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[key], value) for key, value in TENSORS.items())


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model_state", "model"])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_is_read_however_it_is_wrapped_and_turned_once(wrapped, legacy, tmp_path):
    content = {wrapped: TENSORS, "epoch": 3, "meta": {"name": "x"}} if wrapped else TENSORS
    file = tmp_path / "weights.pth"
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    check(read_weights(str(file), cache_dir=tmp_path / "cache"))
    (turned,) = (tmp_path / "cache" / "weights" / "turned").iterdir()
    assert turned.name == f"{file_sha256(file)}.safetensors"
    made = turned.stat().st_mtime_ns
    check(read_weights(str(file), cache_dir=tmp_path / "cache"))
    assert turned.stat().st_mtime_ns == made


def test_safetensors_are_read_where_they_are(tmp_path):
    save_file(TENSORS, tmp_path / "weights.safetensors")
    check(read_weights(str(tmp_path / "weights.safetensors"), cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"state_dict": TENSORS, "hook": Evil(tmp_path / "ran")}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=r"(?s)is no plain file of weights.*Nothing of it was run.*save its tensors"):
        read_weights(str(tmp_path / "weights.pth"), cache_dir=tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is damaged or no file of torch"),
        (b"PK\x03\x04 cut", "is damaged or no file of torch"),
        (None, "holds no mapping"),
    ],
)
def test_a_file_without_weights_is_refused(content, said, tmp_path):
    file = tmp_path / "weights.pth"
    if content is None:
        torch.save([torch.zeros(1)], file)
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_weights(str(file), cache_dir=tmp_path)


def test_an_address_is_fetched_once_and_its_copy_serves_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served").mkdir()
    torch.save(TENSORS, tmp_path / "served" / "net.pth")
    with faulty(tmp_path / "served", ["503 0"], names=(".pth",)) as (url, server):
        check(read_weights(f"{url}/net.pth", cache_dir=tmp_path / "cache"))
        check(read_weights(f"{url}/net.pth", cache_dir=tmp_path / "cache"))
        assert server.taken == ["net.pth 0"]
    monkeypatch.setenv("INFLATE3D_OFFLINE", "1")
    check(read_weights(f"{url}/net.pth", cache_dir=tmp_path / "cache"))
    with pytest.raises(InputError, match=r"no copy in .*, and the environment says: offline"):
        read_weights(f"{url}/other.pth", cache_dir=tmp_path / "cache")


def test_a_name_that_holds_a_hash_is_checked_against_it(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    torch.save(TENSORS, tmp_path / "net.pth")
    right, wrong = f"net-{file_sha256(tmp_path / 'net.pth')[:8]}.pth", "net-01234567.pth"
    for name in (right, wrong):
        (tmp_path / name).write_bytes((tmp_path / "net.pth").read_bytes())
    with faulty(tmp_path) as (url, _):
        check(read_weights(f"{url}/{right}", cache_dir=tmp_path / "cache"))
        with pytest.raises(InputError, match="not that of its name"):
            read_weights(f"{url}/{wrong}", cache_dir=tmp_path / "cache")
    assert [file.suffix for file in (tmp_path / "cache" / "weights" / "files").glob("net*")] == [".pth"]


@pytest.mark.parametrize("name", ["hf-hub:org", "hf-hub:org/name", "hf-hub:org/name/../x", "hf-hub:org/name/.git"])
def test_a_file_on_the_hub_has_a_repository_and_a_plain_name(name):
    with pytest.raises(InputError, match="expected hf-hub:ORG/NAME/FILE"):
        parse_hub_file(name)
    assert (
        str(parse_hub_file("hf-hub:org/name@v1/a/b.pth"))
        == "(HubPlace(repository='org/name', revision='v1'), 'a/b.pth')"
    )


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file 'gone\.pth'"):
        local_file("gone.pth", cache_dir=tmp_path)


@pytest.mark.slow
def test_the_hubs_client_fetches_a_file_of_any_repository(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    command = (
        "import sys; from inflate3d.models.sources.weight_files import read_weights; "
        "print(sorted(read_weights(sys.argv[1])))"
    )
    with hub_stand_in({"lab/net": tmp_path}) as (url, _):
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub")}

        def ask(name):
            run = [sys.executable, "-W", "ignore", "-c", command, name]
            return subprocess.run(run, env=environment, capture_output=True, encoding="utf-8", timeout=300)

        assert ask("hf-hub:lab/net/model.safetensors").stdout == "['a.weight', 'b']\n"
        assert "no file 'other.pth' there" in ask("hf-hub:lab/net/other.pth").stderr
