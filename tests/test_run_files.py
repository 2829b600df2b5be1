"""Small files of a run after a power cut, a flip or an editor: named in one line, or the run goes on and says so."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from inflate3d.cli.main import main
from inflate3d.data.shards.manifest import MANIFEST_FILE, Manifest
from inflate3d.data.shards.writer import build_shards
from inflate3d.data.stream import batch_memory
from inflate3d.data.stream.stream_error import StreamError
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.files import sealed, unsealed, write_whole
from inflate3d.training import check_same_config, find_checkpoint, write_config
from inflate3d.training.checkpoints import store
from inflate3d.training.run.build_record import check_build_record, write_build_record
from inflate3d.training.run.folder import (
    read_environment,
    read_run_config,
    read_state,
    record_environment,
    write_state,
)
from inflate3d.training.run.metrics_csv import drop_rows_after, read_metrics
from inflate3d.training.run.metrics_logger import MetricsCSV
from nightly import some

# What a file is after a power cut (empty, zeros, a part), in other hands, or in another encoding.
DAMAGE = {
    "empty": lambda raw: b"",
    "zeros": lambda raw: b"\0" * len(raw),
    "half": lambda raw: raw[: len(raw) // 2],
    "zeros at the end": lambda raw: raw[:-8] + b"\0" * 8,
    "a block of zeros": lambda raw: raw[:20] + b"\0" * 20 + raw[40:],
    "one byte short": lambda raw: raw[:-1],
    "twice": lambda raw: raw + raw,
    "another encoding": lambda raw: raw.decode().encode("utf-16"),
    "no UTF-8": lambda raw: raw[:30] + b"\xe9" + raw[31:],
    "other JSON": lambda raw: b"{}",
    "a list": lambda raw: b"[1, 2]",
    "a number": lambda raw: b"7",
    "deep": lambda raw: b"[\n" * 5_000,
}
each_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
# 1,000 flips of each file are what docs/reliability.md reports.
flips = pytest.mark.parametrize("count", some([(60,), (1000,)], [(60,)]))


def flipped(raw: bytes, count: int) -> list[bytes]:
    """The file with one bit of it flipped, at `count` places."""
    chance = random.Random(len(raw))
    found = []
    for _ in range(count):
        place = chance.randrange(8 * len(raw))
        content = bytearray(raw)
        content[place // 8] ^= 1 << place % 8
        found.append(bytes(content))
    return found


def write(run: Path, step: int) -> store.Checkpoint:
    def save(path: Path) -> None:
        path.write_bytes(b"weights of step %d" % step)

    return store.write_checkpoint(
        store.checkpoints_folder(run), step, save, score=step / 100, metrics={"val/score": 0.5}
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for step in (10, 12):
        write(tmp_path, step)
    return tmp_path


# ------------------------------------------------------------------------------------------------------ complete.json


@flips
def test_a_flip_in_the_newest_complete_json_makes_the_run_go_on_from_the_one_before(
    run: Path, count: int, caplog
) -> None:
    file = run / "checkpoints" / "step-00000012" / store.COMPLETE
    for content in flipped(file.read_bytes(), count):
        file.write_bytes(content)
        caplog.clear()
        assert find_checkpoint(run).step == 10
        assert str(file.parent) in caplog.text
        assert store.COMPLETE in caplog.text


@each_damage
def test_a_damaged_complete_json_is_passed_over_and_a_path_to_it_refused(run: Path, damage, caplog) -> None:
    file = run / "checkpoints" / "step-00000012" / store.COMPLETE
    file.write_bytes(damage(file.read_bytes()))
    assert find_checkpoint(run).step == 10
    assert "step-00000012 is broken (complete.json" in caplog.text
    assert [c.step for c in store.list_checkpoints(run / "checkpoints")] == [10]
    with pytest.raises(InputError, match=r"step-00000012 is not a whole checkpoint: complete\.json"):
        find_checkpoint(run, file.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("step", 22), ("step", "12"), ("step", None), ("score", "high"), ("files", {}), ("files", [])],
        *[("metrics", 1), ("files", {store.STATE: 7}), ("files", {"../../x": {"bytes": 1, "sha256": ""}})],
    ],
)
def test_an_older_complete_json_without_a_hash_must_make_sense(run: Path, key: str, value: object) -> None:
    file = run / "checkpoints" / "step-00000012" / store.COMPLETE
    content, has_seal = unsealed(file.read_bytes(), keys=())
    assert has_seal
    file.write_text(json.dumps(content))
    assert find_checkpoint(run).step == 12  # as before
    file.write_text(json.dumps({**content, key: value}))
    assert find_checkpoint(run).step == 10


# --------------------------------------------------------------------------------------------------- environment.json


@flips
def test_a_flip_in_environment_json_is_named_and_the_run_goes_on(tmp_path: Path, count: int) -> None:
    raw = record_environment(tmp_path, device="cpu").read_bytes()
    for content in flipped(raw, count):
        (tmp_path / "environment.json").write_bytes(content)
        with pytest.raises(InputError, match=r"environment\.json: damaged: "):
            read_environment(tmp_path)


@each_damage
def test_a_damaged_environment_json_is_kept_under_another_name_and_said(tmp_path: Path, damage, caplog) -> None:
    path = record_environment(tmp_path, device="cpu")
    path.write_bytes(broken := damage(path.read_bytes()))
    record_environment(tmp_path, device="cpu")
    assert len(read_environment(tmp_path)) == 1
    assert "environment.json: damaged" in caplog.text
    assert (tmp_path / "environment.json.damaged").read_bytes() == broken
    path.write_bytes(b"")
    record_environment(tmp_path, device="cpu")
    assert (tmp_path / "environment.json.damaged").read_bytes() == broken  # nothing takes its place
    assert (tmp_path / "environment.json.damaged1").read_bytes() == b""


def test_an_older_environment_json_without_a_hash_goes_on(tmp_path: Path) -> None:
    path = record_environment(tmp_path, device="cpu")
    content = json.loads(path.read_bytes())
    del content["sha256"]
    path.write_text(json.dumps(content, indent=1))
    record_environment(tmp_path, device="cpu")
    assert len(read_environment(tmp_path)) == 2


def test_no_password_of_an_address_is_written_down(tmp_path: Path, monkeypatch) -> None:
    words = ["platform", "--data.root=https://me:pass'wd/x@host/set?sig=abc", "--trainer.max_steps", "3"]
    monkeypatch.setattr("sys.argv", words)
    record_environment(tmp_path, device="cpu")
    command = read_environment(tmp_path)[0]["command"]
    assert command == ["platform", "--data.root=https://***@host/set?...", "--trainer.max_steps", "3"]


# ------------------------------------------------------------------------------------------------------ manifest.json


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "toy"
    build_shards(Toy(kind="volume_classification", num_train=3, num_val=1, size=16), folder, progress=False)
    return folder


@pytest.fixture
def manifest(shards: Path) -> Path:
    path = shards / MANIFEST_FILE
    raw = path.read_bytes()
    yield path
    path.write_bytes(raw)


@flips
def test_any_flip_in_a_manifest_is_refused_and_named(manifest: Path, count: int) -> None:
    for content in flipped(manifest.read_bytes(), count):
        manifest.write_bytes(content)
        with pytest.raises(InputError, match=r"manifest\.json: .*Build the shards again"):
            Manifest.load(manifest.parent)


@each_damage
def test_a_damaged_manifest_is_refused_and_named(manifest: Path, damage) -> None:
    manifest.write_bytes(damage(manifest.read_bytes()))
    with pytest.raises(InputError, match=r"manifest\.json: "):
        Manifest.load(manifest.parent)


def test_an_older_manifest_without_a_hash_is_read_and_said_once(manifest: Path, caplog) -> None:
    whole = Manifest.load(manifest.parent)
    content = json.loads(manifest.read_bytes())
    del content["sha256"]
    manifest.write_text(json.dumps(content, indent=1))
    caplog.set_level("INFO")
    assert [Manifest.load(manifest.parent) == whole for _ in range(3)] == [True] * 3
    assert caplog.text.count("has no hash over itself") == 1


def test_a_hash_whose_name_is_damaged_is_no_older_file() -> None:
    raw = sealed({"a": 1})
    assert unsealed(raw, keys=["a"]) == ({"a": 1}, True)
    with pytest.raises(ValueError, match="unknown key 'sha257'"):
        unsealed(raw.replace(b"sha256", b"sha257"), keys=["a"])


# --------------------------------------------------------------------------------- config.yaml, state.json, and others


@each_damage
def test_a_damaged_config_is_named_with_its_remedy(tmp_path: Path, damage) -> None:
    config = {"trainer": {"max_steps": 4}, "model": {"name": "ein langer Name", "size": [1, 2]}}
    path = write_config(tmp_path, config)
    assert read_run_config(tmp_path) == config
    path.write_bytes(damage(path.read_bytes()))
    for read in (read_run_config, lambda run: check_same_config(run, config)):
        with pytest.raises(InputError, match=r"config\.yaml: damaged \(.*\)\. Put a copy back"):
            read(tmp_path)


@flips
def test_any_flip_in_a_config_is_named(tmp_path: Path, count: int) -> None:
    path = write_config(tmp_path, {"trainer": {"max_steps": 4}, "model": {"name": "ein langer Name", "size": [1, 2]}})
    for content in flipped(path.read_bytes(), count):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"config\.yaml: damaged"):
            read_run_config(tmp_path)


def test_an_older_config_without_a_hash_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trainer: {max_steps: 4}\n")
    assert read_run_config(tmp_path) == {"trainer": {"max_steps": 4}}


@each_damage
def test_a_damaged_state_is_named_and_status_says_the_rest(run: Path, damage, capsys) -> None:
    state = {"time": 1.0, "phase": "finished", "step": 4, "max_steps": 4, "world_size": 1, "host": "a", "pid": 1}
    path = write_state(run, {**state, "job": None, "losses": {"train/loss": 0.5}})
    assert read_state(run)["losses"] == {"train/loss": 0.5}
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"state\.json: damaged"):
        read_state(run)
    assert main(["status", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "state.json: damaged" in printed
    assert "step 12" in printed


@each_damage
def test_a_damaged_record_of_a_build_is_named(shards: Path, damage) -> None:
    build = {"class_path": "Toy", "init_args": {"kind": "volume_classification"}}
    write_build_record(shards, build)
    check_build_record(shards, build)
    path = shards.with_name("toy.build.json")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"toy\.build\.json: damaged: .*delete it"):
        check_build_record(shards, build)


# -------------------------------------------------------------------------------------------------------- metrics.csv

ROWS = b"step,train/loss,lr\r\n5,1.5,.1\r\n10,1.25,.1\r\n"
WHOLE = [{"step": 5, "train/loss": 1.5, "lr": 0.1}, {"step": 10, "train/loss": 1.25, "lr": 0.1}]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        ROWS + b"15,1.",
        ROWS + b"15,1.0,.0",
        ROWS + b"1",
        ROWS + b"\0" * 200,
        ROWS + b"15,1.0,.1\r\n",
        ROWS + b"\xe9",
        ROWS + b"15,1.0,.1\r\n20,1.\0,.1\r\n",
    ],
)
def test_what_was_written_after_the_checkpoint_is_dropped_whatever_it_is(
    tmp_path: Path, content: bytes, caplog
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert drop_rows_after(path, 10) == (content != ROWS) + (b"20" in content)
    assert path.read_bytes() == ROWS
    assert read_metrics(path) == WHOLE
    assert not caplog.text


@pytest.mark.parametrize(
    ("content", "kept", "line"),
    [
        (ROWS.replace(b"5,1.5", b"5,\0\0\0"), WHOLE[1:], 2),
        (ROWS + b"\0" * 50 + b"\n15,1.0,.1\n", WHOLE, 4),
        (ROWS.replace(b"1.5", b"\xe9.5"), WHOLE[1:], 2),
        (ROWS.replace(b"5,1.5,.1", b"5,1.5,.1,7"), WHOLE[1:], 2),
        (ROWS.replace(b"10,1.25", b"10,abc"), WHOLE[:1], 3),
        (ROWS.replace(b"10,", b"ten,"), WHOLE[:1], 3),
        (ROWS.replace(b"train/loss", b"train/\xe9"), [], 1),
        (ROWS.replace(b"step", b"\0tep"), [], 1),
        (ROWS.decode().encode("utf-16"), [], 1),
        (b"\0" * 40 + b"\n", [], 1),
    ],
)
def test_a_damaged_row_of_the_past_is_named_and_the_file_kept(tmp_path: Path, content, kept, line, caplog) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"metrics\.csv: line {line} is damaged"):
        read_metrics(path)
    drop_rows_after(path, 10)
    assert read_metrics(path) == kept
    assert f"line {line}" in caplog.text
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content
    MetricsCSV(path, global_step=lambda: 15).log_metrics({"train/loss": 1.0, "lr": 0.5})
    assert read_metrics(path) == [*kept, {"step": 15, "train/loss": 1, "lr": 0.5}]


@pytest.mark.parametrize("content", [b"", b"step,trai", b"\0" * 300])
def test_a_metrics_csv_of_which_nothing_came_to_the_disk_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert read_metrics(path) == []
    drop_rows_after(path, 10)
    MetricsCSV(path, global_step=lambda: 5).log_metrics({"a": 1.0})
    assert read_metrics(path) == [{"step": 5, "a": 1}]


# ---------------------------------------------------------------------------------------------------- disks and rights


def test_files_written_whole_are_flushed_and_so_is_their_folder(tmp_path: Path, monkeypatch) -> None:
    flushed, fsync = [], os.fsync

    def note(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr("os.fsync", note)
    write_whole(tmp_path / "a.json", "{}")
    assert flushed == [".tmp-a.json", tmp_path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the disk that is always full")
@pytest.mark.parametrize("write_it", [lambda p: write_state(p, {}), lambda p: write_config(p, {"a": 1})])
def test_a_full_disk_is_one_line_with_the_path(tmp_path: Path, write_it: Callable[[Path], object]) -> None:
    for name in ("state.json", "config.yaml"):
        (tmp_path / f".tmp-{name}").symlink_to("/dev/full")
    with pytest.raises(InputError, match=rf"^{tmp_path}/(state.json|config.yaml): No space left on device; [\d.]+ MB"):
        write_it(tmp_path)


def test_full_shared_memory_is_one_line_with_its_path(monkeypatch) -> None:
    def full(*_: object) -> None:  # what torch says then
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(batch_memory, "get_worker_info", lambda: object())
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared", full)
    with pytest.raises(StreamError, match=r"^/dev/shm: the shared memory is full: a batch of 3\.0 MB .*num_workers"):
        batch_memory._new_block(3_000_000)


def test_any_error_of_a_file_is_one_line_with_its_path(tmp_path: Path, capsys, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    for number in (5, 13, 30):  # EIO, EACCES, EROFS

        def fail(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number), str(tmp_path / "file"))

        monkeypatch.setattr("inflate3d.cli.main._run", fail)
        assert main(["status", str(tmp_path)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'file'}: {os.strerror(number)}")
