"""Remote shards: bytes arrive whole through a server's faults, and ranks share a cache that keeps its bound."""

from __future__ import annotations

import http.server
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from inflate3d.data import BrokenSample, Manifest, ShardReader, build_shards, check_shards
from inflate3d.data.shards.cache import ShardCache
from inflate3d.data.shards.tar_index import index_tars
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.remote.folder import RemoteFolder
from inflate3d.training.datamodule import DataModule
from loopback_servers import nginx
from warm_process import WarmProcess

KIND = "volume_classification"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    build_shards(
        Toy(kind=KIND, num_train=40, num_val=4, size=24), root / "shapes", max_samples_per_shard=5, progress=False
    )
    return root


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ranges of the files of `folder`; `faults` takes what goes wrong, one a request for a tar."""

    protocol_version = "HTTP/1.1"
    folder: Path
    faults: list[str]
    taken: list[str]

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        fault = self.faults.pop(0) if self.faults and path.suffix == ".tar" else ""
        if fault == "stall":
            time.sleep(1)
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault == "500" or not path.is_file():
            self.send_error(500 if fault else 404)
            return
        content = path.read_bytes()
        if fault == "no ranges":
            del self.headers["Range"]
        start, _, stop = self.headers.get("Range", "bytes=0-")[6:].partition("-")
        part = content[int(start) : int(stop) + 1 if stop else None]
        self.taken.append(f"{path.name} {start}")
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
        self.end_headers()
        if fault == "cut":
            part, self.close_connection = part[: len(part) // 2], True
        if fault == "rot":
            part = bytes([part[0] ^ 1]) + part[1:]
        self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path, faults: list[str] | None = None) -> Iterator[tuple[str, type[Server]]]:
    handler = type("Handler", (Server,), {"folder": folder, "faults": faults or [], "taken": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", handler
        server.shutdown()


def every_sample(reader: ShardReader) -> list[tuple[str, dict[str, bytes]]]:
    raw = (reader.sample(s, i) for s, e in enumerate(reader.entries) for i in range(e.samples))
    return [(r.key, {k: bytes(v) for k, v in r.members.items()}) for r in raw]  # type: ignore[arg-type]


def local(root: Path) -> list[tuple[str, dict[str, bytes]]]:
    return every_sample(ShardReader(root / "shapes", Manifest.load(root / "shapes")))


def remote(url: str, cache: Path, limit: int = 10**9) -> ShardReader:
    return ShardReader(f"{url}/shapes", Manifest.load(f"{url}/shapes"), cache=ShardCache(cache, limit))


def held(cache: Path) -> int:
    total = 0
    for path in cache.iterdir() if cache.is_dir() else ():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def test_samples_come_as_from_a_local_folder_and_once_over_the_net(root: Path, tmp_path: Path) -> None:
    with served(root) as (url, handler):
        assert every_sample(remote(url, tmp_path)) == local(root)
        tars = [t for t in handler.taken if ".tar" in t]
        assert len(tars) == len(Manifest.load(root / "shapes").shards)
        assert every_sample(remote(url, tmp_path)) == local(root)
        assert [t for t in handler.taken if ".tar" in t] == tars  # the cache is warm


def assert_indexed(root: Path, url: str, tmp_path: Path) -> None:
    """Index the tars that lie at an address, as somebody's, and read them by that index."""
    card = {"name": "shapes", "kind": KIND, "modality": "mask", "classes": list(Manifest.load(root / "shapes").classes)}
    members = {"image": "image.npy", "label": "json:label", "affine": "json:affine"}
    mapping = TarMapping.from_dict({"card": card, "splits": {"train": "train*", "val": "val*"}, "members": members})
    tars = [f"{url}/shapes/{{train-00000{{0..7}},val-000000}}.tar"]
    manifest = index_tars(tars, mapping, tmp_path / "out", progress=False)
    assert manifest.tars == f"{url}/shapes"
    reader = ShardReader(tmp_path / "out", manifest, cache=ShardCache(tmp_path / "cache", 10**9))
    found = [(key, members["image.npy"]) for key, members in every_sample(reader)]
    assert found == [(key, members["image.npy"]) for key, members in local(root)]
    assert check_shards(tmp_path / "out") == []


def test_tars_behind_a_server_are_indexed_and_read(root: Path, tmp_path: Path) -> None:
    with served(root, ["500", "cut"]) as (url, _):
        assert_indexed(root, url, tmp_path)
        data = DataModule(
            str(tmp_path), {"out": {"batch_size": 5}}, seed=0, cache_dir=str(tmp_path / "cache"), num_workers=1
        )
        assert len(next(iter(data.train_dataloader()))) == 5


@pytest.mark.parametrize(
    "faults", [["500"] * 3, ["cut"], ["cut", "500", "cut"], ["rot"], ["drop", "drop"], ["no ranges"]]
)
def test_a_faulty_server_is_asked_again(root: Path, tmp_path: Path, faults: list[str]) -> None:
    with served(root, list(faults)) as (url, handler):
        assert every_sample(remote(url, tmp_path)) == local(root)
        assert handler.faults == []


def test_a_server_that_stays_broken_breaks_the_sample_not_the_process(root: Path, tmp_path: Path) -> None:
    with served(root, ["500"] * 50) as (url, _), pytest.raises(BrokenSample, match="after 5 tries"):
        remote(url, tmp_path).sample(0, 0)
    with served(root, ["rot"] * 50) as (url, _), pytest.raises(BrokenSample, match="sha256"):
        remote(url, tmp_path).sample(0, 0)
    with pytest.raises(InputError, match="after 5 tries"):
        Manifest.load("http://127.0.0.1:9/shapes")  # nobody is there
    with served(root) as (url, _), pytest.raises(InputError, match="no such file"):
        Manifest.load(f"{url}/absent")


@pytest.mark.slow
def test_a_server_that_stalls_is_given_up_and_asked_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inflate3d.remote.folder._READ_S", 0.2)
    with served(root, ["stall"]) as (url, _):
        assert every_sample(remote(url, tmp_path / "a")) == local(root)
    with served(root, ["stall"] * 50) as (url, handler):
        reader = remote(url, tmp_path / "b")
        with pytest.raises(BrokenSample, match=r"train-000000.tar: cannot be read after 5 tries \(.*[Tt]imed out"):
            reader.sample(0, 0)
        handler.faults.clear()  # had the next sample of the shard asked again, it would have been answered
        with pytest.raises(BrokenSample, match="after 5 tries"):
            reader.sample(0, 1)


def test_a_full_disk_is_one_error_that_names_the_free_space(root: Path, tmp_path: Path) -> None:
    toy = Toy(kind=KIND, num_train=40, num_val=4, size=24)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with served(root) as (url, _):
        reader = remote(url, tmp_path / "cache")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
            with pytest.raises(BrokenSample, match=r"cache: File too large; [\d.]+ MB are free there. Free some"):
                reader.sample(0, 0)
            with pytest.raises(InputError, match=r"[\d.]+ MB are free there.*finished shards are kept"):
                build_shards(toy, tmp_path / "built", max_samples_per_shard=5, progress=False)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert every_sample(remote(url, tmp_path / "cache")) == local(root)  # and goes on when there is room
    build_shards(toy, tmp_path / "built", max_samples_per_shard=5, progress=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "built").iterdir()} == {
        p.name: p.read_bytes() for p in (root / "shapes").iterdir()
    }


def test_what_is_needed_last_is_evicted_first(root: Path, tmp_path: Path) -> None:
    entries = Manifest.load(root / "shapes").entries("train")[:5]
    size = max(e.bytes for e in entries)
    with served(root) as (url, _):
        folder, cache = RemoteFolder(f"{url}/shapes"), ShardCache(tmp_path, 3 * size)

        def held_now() -> list[int]:
            return [i for i, e in enumerate(entries) if (tmp_path / e.sha256).exists()]

        for entry in entries[:3]:
            os.close(cache.open(folder, entry))
        cache.prefetch(folder, [entries[i] for i in (2, 0, 1)])  # used longest ago is 0; needed last is 1
        os.close(cache.open(folder, entries[3]))
        assert held_now() == [0, 2, 3]
        cache.prefetch(folder, [entries[i] for i in (3, 0, 2, 4)])  # for 4 nothing that is needed sooner must go
        wait_until(lambda: not cache._fetches)
        assert held_now() == [0, 2, 3]
        cache.prefetch(folder, [entries[i] for i in (0, 4)])  # now there is room: 2 and 3 are not needed any more
        wait_until(lambda: (tmp_path / entries[4].sha256).exists())
        assert 0 in held_now()
        assert held(tmp_path) <= 3 * size


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def test_a_partial_file_is_gone_on_with(root: Path, tmp_path: Path) -> None:
    entry = Manifest.load(root / "shapes").shards[0]
    content = (root / "shapes" / entry.file).read_bytes()
    (tmp_path / f".part-{entry.sha256}-{entry.bytes}").write_bytes(content[:20_000])  # of a process that was killed
    with served(root) as (url, handler):
        remote(url, tmp_path).sample(0, 0)
        assert f"{entry.file} 20000" in handler.taken
    assert not list(tmp_path.glob(".part-*"))


def test_a_cache_smaller_than_a_shard_is_refused(root: Path, tmp_path: Path) -> None:
    with served(root) as (url, _), pytest.raises(BrokenSample, match=r"bounded to 1000.*Raise data.cache_gb"):
        remote(url, tmp_path, 1000).sample(0, 0)


RANK = """
import sys
from itertools import islice
from inflate3d.training.datamodule import DataModule
url, cache, gigabytes, seed = sys.argv[1:]
if __name__ == "__main__":
    datasets = {"shapes": {"batch_size": 5}}
    data = DataModule(url, datasets, seed=int(seed), num_workers=1, cache_gb=float(gigabytes), cache_dir=cache)
    for batch in islice(data.train_dataloader(), 24):
        print(*batch.keys)
"""


@pytest.mark.slow
def test_two_ranks_share_a_cache_smaller_than_the_data_and_it_keeps_its_bound(root: Path, tmp_path: Path) -> None:
    entries = Manifest.load(root / "shapes").entries("train")
    limit = 3 * max(e.bytes for e in entries)
    assert limit < sum(e.bytes for e in entries) / 2
    script, cache = tmp_path / "rank.py", tmp_path / "cache"
    script.write_text(RANK)
    with served(root) as (url, _):
        ranks = [WarmProcess(script, url, cache, limit / 1e9, seed, cwd=tmp_path) for seed in (0, 1, 2)]
        most, killed = 0, False
        while any(r.poll() is None for r in ranks[:2]):
            most = max(most, held(cache))
            if not killed and most and list(cache.glob(".part-*")):
                ranks[2].kill()  # a third, in the middle of its work
                killed = True
            time.sleep(0.001)
    for seed, rank in enumerate(ranks[:2]):
        done = rank.done()
        assert done.returncode == 0, done.stderr
        data = DataModule(str(root), {"shapes": {"batch_size": 5}}, seed=seed)
        assert done.stdout.splitlines() == [" ".join(b.keys) for b in islice(data.train_dataloader(), 24)]
    ranks[2].kill()
    ranks[2].wait()
    assert 0 < most <= limit


def test_a_real_nginx_serves_shards(root: Path, tmp_path: Path) -> None:
    with nginx(root, tmp_path / "nginx") as (url, _):
        assert every_sample(remote(url, tmp_path / "cache")) == local(root)


def test_motos_s3_serves_shards_and_tars_to_be_indexed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3 = pytest.importorskip("boto3", reason="the test extra is not installed")
    pytest.importorskip("s3fs", reason="pip install 'inflate3d[s3]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="shards")
        for path in (root / "shapes").iterdir():
            client.upload_file(str(path), "shards", f"sets/shapes/{path.name}")
        assert every_sample(remote("s3://shards/sets", tmp_path)) == local(root)
        assert_indexed(root, "s3://shards/sets", tmp_path / "indexed")
    finally:
        server.stop()
