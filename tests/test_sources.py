"""Published weights from elsewhere: whole through a server's faults, once for all processes, or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import inflate3d
import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.files import file_sha256
from inflate3d.models.publication.index import entries
from inflate3d.models.publication.layout import most_bytes
from inflate3d.remote.outcomes import Unreachable
from loopback_servers import Clock, faulty, hub_stand_in, moto_s3, nginx

X = torch.linspace(-1, 1, 3 * 4 * 32 * 32).reshape(1, 3, 4, 32, 32)
LOAD = (
    "import sys, torch, inflate3d; torch.set_num_threads(1); "
    "net = inflate3d.create_model(sys.argv[1], pretrained=True).eval(); "
    "x = torch.linspace(-1, 1, 3 * 4 * 32 * 32).reshape(1, 3, 4, 32, 32); "
    "print(net(x).double().sum().item())"
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = inflate3d.create_model("test_resnet", num_classes=0).eval()
    return inflate3d.publish(net, str(tmp_path_factory.mktemp("served") / "weights"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, for our downloads and the Hub's."""
    monkeypatch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("inflate3d.remote.patience.time", Clock())
    for name in ("INFLATE3D_OFFLINE", "HF_HUB_OFFLINE", "INFLATE3D_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def answer(name: str, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return inflate3d.create_model(name, pretrained=True, **kwargs).eval()(X)


@pytest.fixture
def expected(published: Path) -> torch.Tensor:
    return answer(f"local-dir:{published}")


def downloads(taken: list[str]) -> list[str]:
    return [t for t in taken if t.startswith("model.safetensors")]


# ------------------------------------------------------------------------------------------------------------- http


def test_a_directory_behind_http_is_fetched_once_and_then_used_offline(
    published: Path, cache: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty(published.parent) as (url, handler):
        name = f"{url}/weights"
        assert torch.equal(answer(name), expected)
        assert torch.equal(answer(name), expected)
        assert len(downloads(handler.taken)) == 1
        asked = len(handler.taken)
        monkeypatch.setenv("INFLATE3D_OFFLINE", "1")
        assert torch.equal(answer(name), expected)
        assert len(handler.taken) == asked
        monkeypatch.delenv("INFLATE3D_OFFLINE")
    assert torch.equal(answer(name), expected)  # the server is gone: the copy seen last, which the log says
    with pytest.raises(Unreachable, match=r"no copy in .* cannot be reached"):
        answer(name, cache_dir=cache / "empty")
    monkeypatch.setenv("INFLATE3D_OFFLINE", "1")
    with pytest.raises(InputError, match=r"no copy in .* offline"):
        answer(name, cache_dir=cache / "empty")


@pytest.mark.parametrize(
    "faults", [["cut"], ["500", "cut", "503 9", "reset"], ["cut", "no ranges"], ["cut", "rot"], ["rot"]]
)
def test_a_broken_download_is_gone_on_with(
    published: Path, cache: Path, expected: torch.Tensor, faults: list[str]
) -> None:
    with faulty(published.parent, list(faults)) as (url, handler):
        assert torch.equal(answer(f"{url}/weights"), expected)
        assert handler.faults == []
        assert any(not t.endswith(" 0") for t in downloads(handler.taken)) or {"no ranges", "rot"} & set(faults)
    assert not list(cache.rglob(".part-*"))


def test_a_download_that_stays_broken_is_gone_on_with_by_the_next_load(
    published: Path, cache: Path, expected: torch.Tensor
) -> None:
    with faulty(published.parent, ["cut", *["500"] * 500]) as (url, handler):
        with pytest.raises(Unreachable, match=r"model.safetensors: cannot be reached \(HTTP 500"):
            answer(f"{url}/weights")
        handler.faults.clear()
        assert torch.equal(answer(f"{url}/weights"), expected)
        size = (published / "model.safetensors").stat().st_size
        assert downloads(handler.taken)[-1] == f"model.safetensors {size // 2}"


def test_what_arrives_damaged_is_refused_and_deleted(published: Path, cache: Path, expected: torch.Tensor) -> None:
    with faulty(published.parent, ["rot", "rot"]) as (url, _):
        with pytest.raises(InputError, match=r"sha256 [0-9a-f]+\.\.\., expected is .* it was deleted"):
            answer(f"{url}/weights")
        assert not list(cache.rglob("model.safetensors"))
        assert not list(cache.rglob(".part-*"))
        assert torch.equal(answer(f"{url}/weights"), expected)


def test_a_copy_that_rots_in_the_cache_is_deleted_and_fetched_anew(
    published: Path, cache: Path, expected: torch.Tensor
) -> None:
    with faulty(published.parent) as (url, handler):
        answer(f"{url}/weights")
        (copy,) = cache.rglob("replay.safetensors")
        copy.write_bytes(copy.read_bytes()[:-1] + b"\xff")
        with pytest.raises(InputError, match="deleted from the cache; load again"):
            answer(f"{url}/weights")
        assert torch.equal(answer(f"{url}/weights"), expected)
        assert len(downloads(handler.taken)) == 1  # what was whole was kept


@pytest.mark.slow
def test_a_newer_publication_at_the_same_place_is_taken(published: Path, cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site" / "weights"
    shutil.copytree(published, folder)
    with faulty(folder.parent) as (url, _):
        first = answer(f"{url}/weights")
        torch.manual_seed(1)
        inflate3d.publish(inflate3d.create_model("test_resnet", num_classes=0), str(folder))
        assert not torch.equal(answer(f"{url}/weights"), first)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "HTTP 404"),
        ("403", "HTTP 403"),
        ("vast", "may have at most|are free"),
        ("gzip", "arrives compressed"),
        ("to file:///etc/passwd", "redirection|file|unknown url type"),
        ("to ftp://127.0.0.1/x", r"redirects to ftp://127.0.0.1/x, which is not http\(s\)"),
    ],
)
def test_what_a_server_may_not_do_is_refused(published: Path, cache: Path, fault: str, message: str) -> None:
    with faulty(published.parent, [fault] * 5) as (url, _), pytest.raises(InputError, match=message):
        answer(f"{url}/weights")
    assert not list(cache.rglob("model.safetensors"))


@pytest.mark.slow
def test_a_real_nginx_serves_a_publication_to_new_processes(published: Path, cache: Path, tmp_path: Path) -> None:
    with nginx(published.parent, tmp_path / "nginx") as (url, log):
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-W", "ignore", "-c", LOAD, f"{url}/weights"]
        first = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
        assert first.returncode == 0, first.stderr[-2000:]
        assert log.read_text().count("/weights/model.safetensors") == 1
    offline = subprocess.run(
        command, env={**environment, "INFLATE3D_OFFLINE": "1"}, capture_output=True, encoding="utf-8"
    )
    assert offline.stdout == first.stdout != ""


@pytest.mark.slow
def test_eight_processes_at_once_fetch_once_and_get_equal_models(published: Path, cache: Path, tmp_path: Path) -> None:
    with nginx(published.parent, tmp_path / "nginx") as (url, log):
        command = [sys.executable, "-W", "ignore", "-c", LOAD, f"{url}/weights"]
        environment = {**os.environ, "PYTHONSAFEPATH": "1"}
        processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(8)
        ]
        done = [process.communicate(timeout=500) for process in processes]
    assert [p.returncode for p in processes] == [0] * 8, done
    assert len({out for out, _ in done}) == 1
    assert log.read_text().count("/weights/model.safetensors") == 1


# --------------------------------------------------------------------------------------------------------------- s3


@pytest.mark.slow
def test_motos_s3_serves_a_publication(
    published: Path, cache: Path, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_s3(monkeypatch) as client:
        for path in published.iterdir():
            client.upload_file(str(path), "weights", f"nets/one/{path.name}")
        assert torch.equal(answer("s3://weights/nets/one"), expected)
        (partial_of,) = cache.rglob("model.safetensors")
        place, content = partial_of.parents[1], partial_of.read_bytes()
        shutil.rmtree(partial_of.parent)
        (place / f".part-{file_sha256(published / 'model.safetensors')}").write_bytes(content[:1000])
        assert torch.equal(answer("s3://weights/nets/one"), expected)
        client.put_object(Bucket="weights", Key="nets/one/model.safetensors", Body=content[:-1] + b"\x7f")
        with pytest.raises(InputError, match="it was deleted"):
            answer("s3://weights/nets/one", cache_dir=cache / "other")
        with pytest.raises(InputError, match="no such file"):
            answer("s3://weights/nets/two")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert torch.equal(answer("s3://weights/nets/one"), expected)


# -------------------------------------------------------------------------------------------------------------- Hub


def in_new_process(name: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The Hub's client reads its environment when it is imported."""
    command = [sys.executable, "-W", "ignore", "-c", LOAD, name]
    full = {**os.environ, "PYTHONSAFEPATH": "1", **environment}
    return subprocess.run(command, env=full, capture_output=True, encoding="utf-8", timeout=300)


@pytest.mark.slow
def test_the_real_hub_client_fetches_from_a_stand_in_of_the_hub(
    published: Path, cache: Path, expected: torch.Tensor, tmp_path: Path
) -> None:
    with hub_stand_in({"lab/net": published}) as (url, handler):
        online = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
        first = in_new_process("hf-hub:lab/net", online)
        assert first.returncode == 0, first.stderr[-2000:]
        assert float(first.stdout) == pytest.approx(expected.double().sum().item(), rel=1e-6)
        offline = in_new_process("hf-hub:lab/net", {**online, "HF_HUB_OFFLINE": "1"})
        assert offline.stdout == first.stdout
        assert handler.requests.count("GET model.safetensors") == 1
        (copy,) = (tmp_path / "hub").rglob("snapshots/*/model.safetensors")
        blob = copy.resolve()
        blob.write_bytes(blob.read_bytes()[:-1] + b"\x7f")
        damaged = in_new_process("hf-hub:lab/net", {**online, "HF_HUB_OFFLINE": "1"})
        assert "deleted from the cache" in damaged.stderr
        assert not blob.exists()


@pytest.mark.slow
def test_the_hub_client_goes_on_where_a_download_broke_and_says_what_is_missing(
    published: Path, cache: Path, tmp_path: Path
) -> None:
    # The client keeps what came in steps of 10 MB: a file of several of them is cut.
    large = inflate3d.publish(inflate3d.create_model("resnet10t", num_classes=0), str(tmp_path / "large"))
    with hub_stand_in({"lab/net": Path(large), "lab/other": published.parent}) as (url, handler):
        online = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hub")}
        handler.faults[:] = ["cut"]
        assert in_new_process("hf-hub:lab/net@main", online).returncode == 0
        assert any(r.startswith("from ") and r != "from 0" for r in handler.requests)
        for name, words in {
            "hf-hub:lab/absent": "no such model",
            "hf-hub:lab/net@v9": "no revision 'v9'",
            "hf-hub:lab/other": "no SHA256SUMS",
        }.items():
            assert words in in_new_process(name, online).stderr


@pytest.mark.parametrize("name", ["hf-hub:net", "hf-hub:../x/y", "hf-hub:a/b/c", "hf-hub:a/b@../../x", "hf-hub:a/..b"])
def test_names_of_the_hub_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="hf-hub:"):
        answer(name)


# ------------------------------------------------------------------------------------------------------ short names


def write_index(path: Path, models: dict[str, Any], form: str = "inflate3d-index/1") -> Path:
    path.write_text(json.dumps({"format": form, "models": models}))
    return path


def test_a_short_name_is_found_listed_pinned_and_then_needs_no_network(
    published: Path, cache: Path, expected: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = file_sha256(published / "SHA256SUMS")
    with faulty(published.parent) as (url, handler):
        models = {"tiny_3d.toy_v1": {"source": f"{url}/weights", "sha256": pin, "title": "a test"}}
        monkeypatch.setenv("INFLATE3D_INDEX", str(write_index(tmp_path / "index.json", models)))
        assert inflate3d.list_pretrained("*toy*") == ["tiny_3d.toy_v1"]
        assert torch.equal(answer("tiny_3d.toy_v1"), expected)
        asked = len(handler.taken)
        assert torch.equal(answer("tiny_3d.toy_v1"), expected)
        assert len(handler.taken) == asked
        with pytest.raises(InputError, match=r"close names: 'tiny_3d\.toy_v1'"):
            answer("tiny_3d.toy_v2")
        write_index(tmp_path / "index.json", {"tiny_3d.toy_v1": {**models["tiny_3d.toy_v1"], "sha256": "0" * 64}})
        with pytest.raises(InputError, match="the publication was replaced"):
            answer("tiny_3d.toy_v1")
    write_index(tmp_path / "index.json", {"tiny_3d.toy_v1": {"source": "local-dir:weights", "sha256": pin}})
    shutil.copytree(published, tmp_path / "weights")
    assert torch.equal(answer("tiny_3d.toy_v1"), expected)  # relative to the index


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"Bad Name": {"source": "s3://x/y"}}, "expected ARCHITECTURE.TAG"),
        ({"a.b": {}}, "'source' is missing"),
        ({"a.b": {"source": "resnet18"}}, "expected hf-hub:"),
        ({"a.b": {"source": "s3://x/y", "sha256": "12"}}, "64 digits"),
        ({"a.b": {"source": "s3://x/y", "licens": "MIT"}}, "close names: 'licence'"),
    ],
)
def test_an_index_that_is_wrong_names_the_entry(
    models: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFLATE3D_INDEX", str(write_index(tmp_path / "index.json", models)))
    with pytest.raises(InputError, match=message):
        entries()
    monkeypatch.setenv("INFLATE3D_INDEX", str(write_index(tmp_path / "index.json", {}, "inflate3d-index/9")))
    with pytest.raises(InputError, match="this version reads 'inflate3d-index/1'"):
        entries()


def test_weights_that_left_the_package_say_where_they_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = {"resnet18_3d.v1": "resnet18_3d.v2 took its place"}
    packaged = tmp_path / "pretrained.json"
    packaged.write_text(json.dumps({"format": "inflate3d-index/1", "models": {}, "moved": moved}))
    monkeypatch.setattr("inflate3d.models.publication.index._PACKAGED", packaged)
    with pytest.raises(InputError, match=r"resnet18_3d\.v1 comes with the package no longer: resnet18_3d\.v2 took"):
        inflate3d.create_model("resnet18_3d.v1", pretrained=True)
    mine = {"resnet18_3d.v1": {"source": f"local-dir:{tmp_path / 'mine'}"}}
    monkeypatch.setenv("INFLATE3D_INDEX", str(write_index(tmp_path / "index.json", mine)))
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "mine"))):  # somebody's copy of them
        inflate3d.create_model("resnet18_3d.v1", pretrained=True)


def test_every_file_of_a_publication_has_a_bound() -> None:
    assert most_bytes("config.json") < most_bytes("replay.safetensors") < most_bytes("model.safetensors") < 2**40
