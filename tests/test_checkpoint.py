"""Checkpoints are whole or passed over; the folder of a run keeps config, environment and metrics straight."""

import json
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from inflate3d.errors import InputError
from inflate3d.training.checkpoints import store as store
from inflate3d.training.checkpoints.store import find_checkpoint
from inflate3d.training.run.folder import check_same_config, record_environment, write_config
from inflate3d.training.run.metrics_csv import drop_rows_after, read_metrics
from inflate3d.training.run.metrics_logger import MetricsCSV


def write(run: Path, step: int, score: float | None = None, text: str = "state") -> store.Checkpoint:
    def save(path: Path) -> None:
        path.write_text(f"{text} {step}")

    return store.write_checkpoint(store.checkpoints_folder(run), step, save, score=score, metrics={})


def break_file(checkpoint: store.Checkpoint) -> None:
    data = bytearray(checkpoint.state.read_bytes())
    data[0] ^= 1
    checkpoint.state.write_bytes(data)


def test_nothing_yet_is_no_error(tmp_path):
    assert find_checkpoint(tmp_path) is None


def test_last_and_best_are_found(tmp_path):
    for step, score in ((10, 0.5), (20, 0.9), (30, None)):
        write(tmp_path, step, score)
    assert find_checkpoint(tmp_path, "last").step == 30
    assert find_checkpoint(tmp_path, "best").step == 20
    assert find_checkpoint(tmp_path, "best").score == 0.9


def test_complete_json_states_sizes_and_hashes(tmp_path):
    found = write(tmp_path, 7)
    content = json.loads((found.path / "complete.json").read_text())
    assert find_checkpoint(tmp_path).time == content["time"] == found.time
    assert abs(datetime.fromisoformat(found.time) - datetime.now(UTC)) < timedelta(minutes=5)
    assert found.path.name == "step-00000007"
    assert content["files"]["state.ckpt"]["bytes"] == len("state 7")
    assert len(content["files"]["state.ckpt"]["sha256"]) == 64


@pytest.mark.parametrize(
    "damage", ["flip a bit", "truncate", "remove the state", "remove complete.json", "empty folder"]
)
def test_a_broken_newest_is_passed_over_and_said(tmp_path, caplog, damage):
    write(tmp_path, 10)
    newest = write(tmp_path, 20)
    if damage == "flip a bit":
        break_file(newest)
    elif damage == "truncate":
        newest.state.write_bytes(b"sta")
    elif damage == "remove the state":
        newest.state.unlink()
    elif damage == "remove complete.json":
        (newest.path / "complete.json").unlink()
    else:
        (newest.path / "complete.json").unlink()
        newest.state.unlink()
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(tmp_path).step == 10
    assert "step-00000020" in caplog.text


def test_a_half_written_one_is_not_seen_and_cleared_by_the_next(tmp_path):
    write(tmp_path, 10)
    folder = store.checkpoints_folder(tmp_path)
    store.begin(folder, 20)
    (store.unfinished(folder, 20) / "state.ckpt").write_text("sta")
    assert find_checkpoint(tmp_path).step == 10
    write(tmp_path, 30)
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000010", "step-00000030"]


def test_all_broken_is_an_error_not_a_fresh_start(tmp_path):
    break_file(write(tmp_path, 10))
    with pytest.raises(InputError, match=r"all checkpoints .* are broken"):
        find_checkpoint(tmp_path)


def test_a_path_is_taken_and_verified(tmp_path):
    found = write(tmp_path, 10)
    assert find_checkpoint(tmp_path, str(found.path)).step == 10
    assert find_checkpoint(tmp_path, found.state).step == 10
    break_file(found)
    with pytest.raises(InputError, match=r"not a whole checkpoint: state\.ckpt has changed"):
        find_checkpoint(tmp_path, found.path)
    with pytest.raises(InputError, match="does not exist"):
        find_checkpoint(tmp_path, tmp_path / "nowhere")


def test_a_folder_of_shards_is_a_state_too(tmp_path):
    def save(path: Path) -> None:
        (path / "rank0").mkdir(parents=True)
        (path / "rank0" / "zero.pt").write_bytes(b"0")
        (path / "rank1.pt").write_bytes(b"1")

    folder = store.checkpoints_folder(tmp_path)
    found = store.write_checkpoint(folder, 5, save, score=None, metrics={})
    assert store.fault_of(found.path) is None
    (found.state / "rank0" / "zero.pt").write_bytes(b"x")
    assert "zero.pt" in store.fault_of(found.path)


def test_the_same_step_written_again_takes_the_place(tmp_path):
    write(tmp_path, 10, text="old")
    again = write(tmp_path, 10, text="new")
    assert again.state.read_text() == "new 10"
    assert len(list(store.checkpoints_folder(tmp_path).iterdir())) == 1


def test_what_is_kept_is_the_last_the_best_and_every_nth(tmp_path):
    scores = {10: 0.1, 20: 0.9, 30: 0.3, 40: 0.9, 50: None, 60: 0.5}
    checkpoints = [write(tmp_path, step, score) for step, score in scores.items()]
    gone = store.superseded(checkpoints, step=60, keep_last=2, keep_best=1, keep_every=30)
    assert [c.step for c in gone] == [10, 40]  # 20 came before 40 with the same score


def test_a_rewound_future_is_left_alone(tmp_path):
    checkpoints = [write(tmp_path, step) for step in (10, 20, 90)]
    assert [c.step for c in store.superseded(checkpoints, step=20, keep_last=1, keep_best=0, keep_every=None)] == [10]


# --------------------------------------------------------------------------------------------------- the run's folder


def test_a_changed_config_is_refused_but_for_what_may_change(tmp_path):
    config = {
        "trainer": {"devices": 1, "max_steps": 10},
        "model": {"optimizer": {"lr": 0.1}},
        "data": {"num_workers": 0},
    }
    check_same_config(tmp_path, config)
    write_config(tmp_path, config)
    check_same_config(tmp_path, {**config, "trainer": {"devices": 4, "max_steps": 99}, "data": {"num_workers": 2}})
    with pytest.raises(InputError, match=r"model\.optimizer\.lr: was 0\.1, now 0\.2"):
        check_same_config(tmp_path, {**config, "model": {"optimizer": {"lr": 0.2}}})
    with pytest.raises(InputError, match=r"model\.tasks\.new: was None, now 1"):
        check_same_config(tmp_path, {**config, "model": {**config["model"], "tasks": {"new": 1}}})


def test_the_refusal_has_at_most_eight_lines(tmp_path):
    write_config(tmp_path, {f"key{i}": i for i in range(20)})
    with pytest.raises(InputError) as error:
        check_same_config(tmp_path, {f"key{i}": -i - 1 for i in range(20)})
    assert len(str(error.value).splitlines()) <= 8


def test_environment_gains_an_entry_a_start(tmp_path):
    record_environment(tmp_path, device="cpu")
    path = record_environment(tmp_path, device="cpu")
    starts = json.loads(path.read_text())["starts"]
    assert len(starts) == 2
    assert starts[0]["packages"]["torch"]
    assert {"time", "command", "git", "device", "python"} <= starts[0].keys()


def test_metrics_are_appended_and_new_keys_get_columns(tmp_path):
    path, step = tmp_path / "metrics.csv", 0
    first = MetricsCSV(path, global_step=lambda: step)
    first.log_metrics({"a": 1.0})
    step = 1
    first.log_metrics({"a": 2.0, "b": 0.5, "epoch": 0}, step=77)
    again = MetricsCSV(path, global_step=lambda: step)  # the run goes on
    step = 2
    again.log_metrics({"b": 3.0})
    assert read_metrics(path) == [{"step": 0, "a": 1}, {"step": 1, "a": 2, "b": 0.5}, {"step": 2, "b": 3}]


def test_rows_past_the_checkpoint_and_torn_rows_are_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,a,b\n1,1,2\n2,3,4\n3,5,6\n4,7")
    assert drop_rows_after(path, 2) == 2
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    assert drop_rows_after(path, 2) == 0
    assert drop_rows_after(tmp_path / "none.csv", 2) == 0


def test_metrics_keep_every_bit(tmp_path):
    value = 0.1 + 0.2
    MetricsCSV(tmp_path / "metrics.csv", global_step=lambda: 1).log_metrics({"a": value})
    assert read_metrics(tmp_path / "metrics.csv")[0]["a"] == value


@pytest.mark.parametrize(
    "error",
    # The second is what torch.save says on a full disk.
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672]"),
    ],
)
def test_a_full_disk_is_named_with_its_free_space_and_costs_no_earlier_checkpoint(tmp_path, error):
    kept = write(tmp_path, 10)
    folder = store.checkpoints_folder(tmp_path)
    store.begin(folder, 20)
    (store.unfinished(folder, 20) / store.STATE).write_bytes(bytes(500_000))
    message = r"(?s)step 20 .* 0\.5 MB were written, then [\d.]+ MB were free.*step-00000010"
    with pytest.raises(InputError, match=message), store.space_for(folder, 20):
        raise error
    assert find_checkpoint(tmp_path).path == kept.path
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, the disk that is always full")
def test_what_torch_says_on_a_full_disk_is_understood(tmp_path):
    folder = store.checkpoints_folder(tmp_path)

    def save(path: Path) -> None:
        path.symlink_to("/dev/full")
        torch.save({"weight": torch.zeros(1_000_000)}, path)

    with pytest.raises(InputError, match="no space for the checkpoint of step 20"), store.space_for(folder, 20):
        store.write_checkpoint(folder, 20, save, score=None, metrics={})


def test_other_errors_of_a_save_are_left_as_they_are(tmp_path):
    store.begin(store.checkpoints_folder(tmp_path), 20)
    with pytest.raises(RuntimeError, match="out of memory"), store.space_for(store.checkpoints_folder(tmp_path), 20):
        raise RuntimeError("CUDA out of memory")
