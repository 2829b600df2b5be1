"""A run folder has one writer: a second start is refused with who holds it, and who has died holds nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inflate3d.errors import InputError
from inflate3d.training.run import lock
from inflate3d.training.run.lock import LOCK, one_writer
from nightly import some

# Takes the lock, says so, adds a line to the folder's book, and keeps the lock until it is told to go, or killed.
# A child that it leaves behind lives on, with a copy of all that it had open.
HOLDER = """
import os, sys, time
from pathlib import Path
from inflate3d.errors import InputError
from inflate3d.training.run.lock import one_writer
try:
    with one_writer(sys.argv[1]):
        with open(Path(sys.argv[1], "book"), "a") as book:
            book.write(f"{os.getpid()}\\n")
        if "child" in sys.argv and os.fork() == 0:
            os.close(1)
            time.sleep(30)
            os._exit(0)
        print("holds", flush=True)
        sys.stdin.read()
except InputError as error:
    print(f"refused: {error}", flush=True)
"""


def start(folder: Path, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-P", "-c", HOLDER, str(folder), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")


def said(process: subprocess.Popen) -> str:
    return process.stdout.readline()


def end(*processes: subprocess.Popen) -> None:
    for process in processes:
        process.stdin.close()
        process.stdout.close()
        process.wait(timeout=60)


def test_the_second_start_is_refused_by_whatever_path_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    run, other_path = tmp_path / "run", tmp_path / "link"
    other_path.symlink_to(run)
    first = start(run)
    assert said(first) == "holds\n"
    for folder in (run, other_path, other_path / ".." / "run"):
        named = pytest.raises(InputError, match=rf"another start .* process {first.pid} on host .*, since 20")
        with named as told, one_writer(folder):
            pass
        assert os.uname().nodename in str(told.value)
        assert "ANOTHER_FOLDER" in str(told.value)
    end(first)
    assert (run / LOCK).read_bytes() == b""
    with one_writer(other_path):
        assert str(os.getpid()) in (run / LOCK).read_text()


def test_a_process_is_kept_out_by_itself_and_does_not_lose_its_lock_by_asking(tmp_path: Path) -> None:
    with one_writer(tmp_path):
        with pytest.raises(InputError, match="this very process"), one_writer(tmp_path):
            pass
        second = start(tmp_path)
        assert said(second).startswith("refused")
        end(second)


def test_who_is_killed_holds_nothing_even_if_children_of_his_live_on(tmp_path: Path) -> None:
    first = start(tmp_path, "child")
    assert said(first) == "holds\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert str(first.pid) in (tmp_path / LOCK).read_text()  # it could not take its name away
    with one_writer(tmp_path):
        pass


def test_a_holder_who_has_not_said_his_name_yet_is_not_called_by_that_of_one_who_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(tmp_path)
    assert said(first) == "holds\n"
    first.kill()
    first.wait()
    path = tmp_path / LOCK
    record = json.loads(path.read_text())
    take = "import fcntl, sys; fcntl.lockf(sys.stdout, fcntl.LOCK_EX); print(file=sys.stderr, flush=True); input()"
    with path.open("r+") as file:
        command = [sys.executable, "-c", take]
        second = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.PIPE)
    second.stderr.readline()
    says = json.dumps({**record, "pid": second.pid})
    monkeypatch.setattr(lock.time, "sleep", lambda _: path.write_text(says))
    with pytest.raises(InputError, match=f"process {second.pid} on host"), one_writer(tmp_path):
        pass
    monkeypatch.setattr(lock.time, "sleep", lambda _: None)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="a process that does not say who it is"), one_writer(tmp_path):
        pass
    second.communicate(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("rounds", some([(2,), (20,)], [(2,)]))
def test_of_two_starts_one_writes_and_none_does_where_another_was_killed(tmp_path: Path, rounds: int) -> None:
    # 20 rounds are what docs/reliability.md reports.
    run = tmp_path / "run"
    (tmp_path / "link").symlink_to(run)
    run.mkdir()
    writers = []
    for i in range(rounds):
        pair = start(run), start(tmp_path / "link")
        told = [said(process) for process in pair]
        assert sorted(line.partition(":")[0].strip() for line in told) == ["holds", "refused"], told
        holder = pair[told.index("holds\n")]
        assert f"process {holder.pid} on host" in max(told, key=len)
        writers.append(holder.pid)
        if i % 2:
            holder.send_signal(signal.SIGKILL)
        end(*pair)
    assert [int(line) for line in (run / "book").read_text().split()] == writers


# -------------------------------------------------------------------- where locks do not reach the other machine


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose lock file names a writer on another machine, of whose lock nothing is known here."""
    record = '{"host": "node7", "boot": "another", "pid": 41, "job": "77", "since": "2026-01-01T00:00:00+00:00"}'
    (tmp_path / LOCK).write_text(record)
    monkeypatch.setattr(lock, "WATCH_S", 0.2)
    return tmp_path


def test_a_writer_elsewhere_that_goes_on_is_kept(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep_and_beat(seconds: float) -> None:  # what the other machine does meanwhile
        os.utime(elsewhere / LOCK, (time.time() + 1, time.time() + 1))

    monkeypatch.setattr(lock.time, "sleep", sleep_and_beat)
    with pytest.raises(InputError, match="process 41 on host node7, SLURM job 77, since 2026"), one_writer(elsewhere):
        pass


@pytest.mark.parametrize("age_s", [0, 10_000])
def test_a_writer_elsewhere_that_is_silent_is_dead(elsewhere: Path, age_s: float) -> None:
    os.utime(elsewhere / LOCK, (time.time() - age_s, time.time() - age_s))
    with one_writer(elsewhere):
        assert "node7" not in (elsewhere / LOCK).read_text()


def test_a_file_system_without_locks_leaves_it_to_the_dates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_locks)
    monkeypatch.setattr(lock, "BEAT_S", 0.01)
    monkeypatch.setattr(lock, "WATCH_S", 2.0)
    with one_writer(tmp_path), monkeypatch.context() as other_process:
        other_process.setattr(lock, "_held", set())  # and given back before what is held is let go
        with pytest.raises(InputError, match=f"process {os.getpid()}"), one_writer(tmp_path):
            pass


@pytest.mark.parametrize("content", [b"\0" * 300, b"{", b"[]", b"\xff"])
def test_a_damaged_lock_file_keeps_nobody_out_for_long(tmp_path: Path, content: bytes, monkeypatch) -> None:
    monkeypatch.setattr(lock, "WATCH_S", 0.05)
    (tmp_path / LOCK).write_bytes(content)
    with one_writer(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
