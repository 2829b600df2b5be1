"""Remote shards: bytes arrive whole through a server's faults, and ranks share a cache that keeps its bound."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from inflate3d.data import BrokenSample, Manifest, ShardReader, build_shards, check_shards
from inflate3d.data.shards.cache import ShardCache
from inflate3d.data.shards.tar_index import find_tars, index_tars
from inflate3d.data.shards.tar_mapping import TarMapping
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.remote.address import Address
from inflate3d.remote.outcomes import Unreachable
from inflate3d.training.datamodule import DataModule
from loopback_servers import Clock, faulty, moto_s3, nginx

KIND = "volume_classification"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    build_shards(
        Toy(kind=KIND, num_train=40, num_val=4, size=24), root / "shapes", max_samples_per_shard=5, progress=False
    )
    return root


def every_sample(reader: ShardReader) -> list[tuple[str, dict[str, bytes]]]:
    raw = (reader.sample(s, i) for s, e in enumerate(reader.entries) for i in range(e.samples))
    return [(r.key, {k: bytes(v) for k, v in r.members.items()}) for r in raw]  # type: ignore[arg-type]


def local(root: Path) -> list[tuple[str, dict[str, bytes]]]:
    return every_sample(ShardReader(root / "shapes", Manifest.load(root / "shapes")))


def remote(url: str, cache: Path, limit: int = 10**9, outage_s: float = 60) -> ShardReader:
    return ShardReader(f"{url}/shapes", Manifest.load(f"{url}/shapes"), cache=ShardCache(cache, limit, outage_s))


def held(cache: Path) -> int:
    """Bytes in the cache at one moment: nothing is evicted meanwhile, and what gets its name counts once."""
    found: dict[str, int] = {}
    with ShardCache(cache, 0)._locked() if (cache / "lock").exists() else nullcontext():
        for path in cache.iterdir() if cache.is_dir() else ():
            with suppress(FileNotFoundError):
                sha256 = path.name.removeprefix(".part-").partition("-")[0]
                found[sha256] = max(found.get(sha256, 0), path.stat().st_size)
    return sum(found.values())


@pytest.mark.slow
def test_samples_come_as_from_a_local_folder_and_once_over_the_net(root: Path, tmp_path: Path) -> None:
    with faulty(root) as (url, handler):
        assert every_sample(remote(url, tmp_path)) == local(root)
        tars = [t for t in handler.taken if ".tar" in t]
        assert len(tars) == len(Manifest.load(root / "shapes").shards)
        assert every_sample(remote(url, tmp_path)) == local(root)
        assert [t for t in handler.taken if ".tar" in t] == tars  # the cache is warm


def assert_indexed(root: Path, url: str, tmp_path: Path) -> None:
    """Index the tars that lie at an address, as somebody's, and read them by that index."""
    targets = Manifest.load(root / "shapes").card.to_dict()["targets"]
    card = {"name": "shapes", "media": "volume", "modality": "mask", "targets": targets}
    members = {"image": "image.npy", "label": "json:targets.label", "affine": "json:affine"}
    mapping = TarMapping.from_dict({"card": card, "splits": {"train": "train*", "val": "val*"}, "members": members})
    tars = [f"{url}/shapes/{{train-00000{{0..7}},val-000000}}.tar"]
    manifest = index_tars(tars, mapping, tmp_path / "out", progress=False)
    assert manifest.tars == f"{url}/shapes" == Manifest.load(tmp_path / "out").tars
    reader = ShardReader(tmp_path / "out", manifest, cache=ShardCache(tmp_path / "cache", 10**9))
    found = [(key, members["image.npy"]) for key, members in every_sample(reader)]
    assert found == [(key, members["image.npy"]) for key, members in local(root)]
    assert check_shards(tmp_path / "out") == []


@pytest.mark.slow
def test_tars_behind_a_server_are_indexed_and_read(root: Path, tmp_path: Path) -> None:
    with faulty(root, ["500", "cut"]) as (url, _):
        assert_indexed(root, url, tmp_path)
        data = DataModule(
            str(tmp_path), {"out": {"batch_size": 5}}, seed=0, cache_dir=str(tmp_path / "cache"), num_workers=1
        )
        assert len(next(iter(data.train_dataloader()))) == 5


def test_credentials_and_tokens_are_used_from_the_index_to_the_batch_and_never_told(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with faulty(root) as (url, handler):
        handler.user = "me:s3cret"
        secret = f"http://me:s3cret@{url.removeprefix('http://')}"
        assert_indexed(root, secret, tmp_path)
        assert "password or token; give it to nobody" in caplog.text
        data = DataModule(
            f"{secret}?token=s3cret", {"shapes": {"batch_size": 5}}, seed=0, cache_dir=str(tmp_path / "c")
        )
        assert len(data.first_batches("shapes", 1)[0].keys) == 5
        assert handler.asked[-1][0].endswith(".tar?token=s3cret")
        handler.faults[:] = ["404"] * 50
        reader = ShardReader(
            data.shards_of("shapes"), data.manifests["shapes"], cache=ShardCache(tmp_path / "d", 10**9)
        )
        with pytest.raises(
            BrokenSample, match=r"http://\*\*\*@127.0.0.1:\d+/shapes/train-000000.tar\?\.\.\.: no"
        ) as told:
            reader.sample(0, 0)
        with pytest.raises(InputError, match=r"several folders, or have a query each: http://\*\*\*@"):
            find_tars([f"{secret}/shapes/a.tar?sig=s3cret1", f"{secret}/shapes/b.tar?sig=s3cret2"])
        with pytest.raises(InputError, match=r"http://\*\*\*@127.0.0.1:\d+/absent/manifest.json: no such file"):
            Manifest.load(f"{secret}/absent")
    assert "s3cret" not in f"{told.value} {caplog.text}"


@pytest.mark.parametrize(
    "faults", [["500"] * 3, ["cut"], ["cut", "500", "cut"], ["rot"], ["drop", "drop"], ["no ranges"]]
)
def test_a_faulty_server_is_asked_again(root: Path, tmp_path: Path, faults: list[str], clock: Clock) -> None:
    with faulty(root, list(faults)) as (url, handler):
        assert every_sample(remote(url, tmp_path)) == local(root)
        assert handler.faults == []


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("inflate3d.remote.patience.time", clock)
    return clock


def test_what_arrives_wrong_or_is_not_there_breaks_the_sample(root: Path, tmp_path: Path) -> None:
    with faulty(root, ["rot"] * 50) as (url, _), pytest.raises(BrokenSample, match="sha256"):
        remote(url, tmp_path).sample(0, 0)
    with faulty(root, ["404"] * 50) as (url, handler):
        reader = remote(url, tmp_path)
        for i in range(2):
            with pytest.raises(BrokenSample, match=r"train-000000.tar: no such file \(HTTP 404"):
                reader.sample(0, i)
        assert len(handler.faults) == 49  # the next sample of the shard does not ask again
    with faulty(root) as (url, _), pytest.raises(InputError, match="no such file"):
        Manifest.load(f"{url}/absent")


def test_an_outage_is_no_broken_sample(root: Path, tmp_path: Path, clock: Clock) -> None:
    with faulty(root, ["503"] * 500) as (url, handler):
        data = DataModule(url, {"shapes": {"batch_size": 5}}, seed=0, cache_dir=str(tmp_path), outage_s=300)
        source = data.source("shapes", "train")
        with pytest.raises(Unreachable, match=r"shapes/train-\d+\.tar: cannot be reached \(HTTP 503 .*most 300 s"):
            source.sample(0, 0, 0, 0)
        assert clock.now >= 300
        assert source.broken == {}
        handler.faults.clear()
        assert source.sample(0, 0, 0, 0).key.startswith("train")  # and goes on when it is over
    with pytest.raises(Unreachable, match="cannot be reached"):
        Manifest.load("http://127.0.0.1:9/shapes")  # nobody is there


def test_a_passing_outage_gives_the_same_batches_only_later(root: Path, tmp_path: Path, clock: Clock) -> None:
    def keys(url: str, cache: str) -> list[str]:
        data = DataModule(url, {"shapes": {"batch_size": 4}}, seed=0, cache_dir=str(tmp_path / cache))
        return [key for batch in data.first_batches("shapes", 6) for key in batch.keys]

    with faulty(root) as (url, _):
        calm = keys(url, "calm")
    with faulty(root, ["503 2", "429 2", "drop"] * 10) as (url, handler):
        assert keys(url, "outage") == calm
        assert handler.faults == []


def test_credentials_that_expire_in_a_run_are_no_broken_samples(root: Path, tmp_path: Path) -> None:
    with faulty(root, ["403"] * 50) as (url, _), pytest.raises(Unreachable, match=r"HTTP 403.*signed address"):
        remote(url, tmp_path).sample(0, 0)


def test_an_outage_in_a_loading_process_arrives_as_one(root: Path, tmp_path: Path) -> None:
    with faulty(root, ["403"] * 50) as (url, _):
        data = DataModule(url, {"shapes": {"batch_size": 5}}, seed=0, cache_dir=str(tmp_path), num_workers=1)
        with pytest.raises(Unreachable) as caught:
            next(iter(data.train_dataloader()))
        assert str(caught.value).startswith(url)  # the message alone


@pytest.mark.slow
def test_a_server_that_stalls_is_given_up_and_asked_again(
    root: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inflate3d.remote.client.TIMEOUT_S", 0.2)
    with faulty(root, ["stall"]) as (url, handler):
        assert len(remote(url, tmp_path / "a").sample(0, 0).members) == 2
        assert len([path for path, _ in handler.asked if path.endswith(".tar")]) >= 2
    with faulty(root, ["stall"] * 50) as (url, _), pytest.raises(Unreachable, match=r"\.tar: .*[Tt]imed out"):
        remote(url, tmp_path / "b", outage_s=1).sample(0, 0)


@pytest.mark.slow
def test_a_full_disk_is_one_error_that_names_the_free_space(root: Path, tmp_path: Path) -> None:
    toy = Toy(kind=KIND, num_train=40, num_val=4, size=24)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with faulty(root) as (url, _):
        reader = remote(url, tmp_path / "cache")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
            with pytest.raises(Unreachable, match=r"File too large; [\d.]+ MB are free there. Free some"):
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
    with faulty(root) as (url, _):
        folder, cache = Address.parse(f"{url}/shapes"), ShardCache(tmp_path, 3 * size)

        def held_now() -> list[int]:
            return [i for i, e in enumerate(entries) if (tmp_path / e.sha256).exists()]

        for entry in entries[:3]:
            os.close(cache.open(folder, entry))
        cache.prefetch(folder, [entries[i] for i in (2, 0, 1)])  # used longest ago is 0; needed last is 1
        assert not cache._fetches  # what is there is marked, not opened: a file in use is not evicted
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
    deadline = time.monotonic() + 300  # a bound on a hang, no expectation
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holds()


def test_a_partial_file_is_gone_on_with(root: Path, tmp_path: Path) -> None:
    entry = Manifest.load(root / "shapes").shards[0]
    content = (root / "shapes" / entry.file).read_bytes()
    (tmp_path / f".part-{entry.sha256}-{entry.bytes}").write_bytes(content[:20_000])  # of a process that was killed
    with faulty(root) as (url, handler):
        remote(url, tmp_path).sample(0, 0)
        assert f"{entry.file} 20000" in handler.taken
    assert not list(tmp_path.glob(".part-*"))


def test_a_cache_smaller_than_a_shard_is_refused(root: Path, tmp_path: Path) -> None:
    with faulty(root) as (url, _), pytest.raises(Unreachable, match=r"bounded to 1000.*Raise data.cache_gb"):
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    with faulty(root) as (url, _):
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), url, str(cache), str(limit / 1e9), str(seed)],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for seed in (0, 1, 2)
        ]
        most, killed = 0, False
        while any(r.poll() is None for r in ranks[:2]):
            most = max(most, held(cache))
            if not killed and most and list(cache.glob(".part-*")):
                os.killpg(ranks[2].pid, signal.SIGKILL)  # a third, in the middle of its work
                killed = True
            time.sleep(0.001)
    for seed, rank in enumerate(ranks[:2]):
        assert rank.wait() == 0
        assert rank.stdout is not None
        data = DataModule(str(root), {"shapes": {"batch_size": 5}}, seed=seed)
        assert rank.stdout.read().splitlines() == [" ".join(b.keys) for b in islice(data.train_dataloader(), 24)]
    ranks[2].kill()
    ranks[2].wait()
    assert 0 < most <= limit


def test_a_real_nginx_serves_shards(root: Path, tmp_path: Path) -> None:
    with nginx(root, tmp_path / "nginx") as (url, _):
        assert every_sample(remote(url, tmp_path / "cache")) == local(root)


@pytest.mark.slow
def test_motos_s3_serves_shards_and_tars_to_be_indexed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with moto_s3(monkeypatch, "shards") as client:
        for path in (root / "shapes").iterdir():
            client.upload_file(str(path), "shards", f"sets/shapes/{path.name}")
        assert every_sample(remote("s3://shards/sets", tmp_path)) == local(root)
        assert_indexed(root, "s3://shards/sets", tmp_path / "indexed")
        pattern = find_tars(["s3://shards/sets/shapes/train-*[0-3].tar"])
        assert pattern == ("s3://shards/sets/shapes", [f"train-00000{n}.tar" for n in range(4)])
