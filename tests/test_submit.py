"""`platform submit` and `platform status` where no SLURM is needed: the script, the site's YAML, what is refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from inflate3d.cli.main import MOST_LINES, main
from inflate3d.cli.submission import zero_ranks
from inflate3d.data.shards.writer import build_shards
from inflate3d.datasets.toy import Toy
from inflate3d.durations import duration
from inflate3d.errors import InputError
from inflate3d.slurm.script import TASK, Job, render_script, seconds_of
from inflate3d.slurm.site import Site

FIT = ["submit", "--config", "quickstart.yaml", "--time", "1:00:00"]
KINDS = {
    "toy_video": "video_classification",
    "toy_volumes": "volume_segmentation",
    "toy_shapes": "volume_classification",
}
# Says what it is, and answers as sbatch and squeue do; a real controller is asked in test_slurm.py.
STAND_IN = """#!/bin/bash
case "$(basename "$0")" in
  sbatch) echo "stand-in sbatch: $*" >> calls.txt
    [ ! -e refuse ] || { echo "sbatch: error: invalid partition" >&2; exit 1; }
    echo 4711;;
  squeue) [ -e queue ] && cat queue || exit 1;;
  *) exit 1;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder on a machine without SLURM."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + ":/usr/bin:/bin" if not _has_slurm() else str(tmp_path / "bin"))
    monkeypatch.delenv("INFLATE3D_SITE", raising=False)
    return tmp_path


def _has_slurm() -> bool:
    return any(Path(folder, "sbatch").exists() for folder in ("/usr/bin", "/bin"))


@pytest.fixture
def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with stand-ins for sbatch, squeue, sacct and scontrol."""
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "sacct", "scontrol"):
        path = folder / "bin" / name
        path.write_text(STAND_IN)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    return folder


def options(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}


def is_valid_bash(script: str) -> bool:
    return subprocess.run(["/bin/bash", "-n"], input=script, text=True, capture_output=True).returncode == 0


# ---------------------------------------------------------------------------------------------------------- the script


def test_a_script_holds_what_the_job_and_the_site_say_and_is_valid_bash(tmp_path: Path) -> None:
    site = Site.from_dict(
        {
            "account": "vision",
            "cpus_per_task": 12,
            "gpu_option": "gres",
            "sbatch": ["--exclusive"],
            "modules": ["cuda/12.6"],
            "setup": "ulimit -n 4096",
            "environment": {"NCCL_SOCKET_IFNAME": "ib0", "NOTE": "it's here"},
            "container": "apptainer exec --nv /images/a b.sif",
            "python": "python3",
            "save_before_s": 300,
        }
    )
    job = Job(
        "r50",
        ("fit", "--config", "/runs/a b/slurm/config.yaml"),
        tmp_path,
        "12:00:00",
        "/runs/a b",
        2,
        8,
        8,
        wandb=True,
    )
    script = render_script(job, site, working_folder=Path("/work/my project"))
    assert is_valid_bash(script)
    assert options(script) == {
        *("--job-name=r50", "--nodes=2", "--ntasks-per-node=8", "--cpus-per-task=12", "--time=12:00:00"),
        *("--account=vision", "--gres=gpu:8", "--signal=B:USR1@300", f"--output={tmp_path}/%j.out"),
        *("--open-mode=append", "--requeue", "--exclusive"),
    }
    for line in (
        "cd '/work/my project' || exit 1",
        "export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1",
        "module load cuda/12.6",
        "ulimit -n 4096",
        "export NOTE='it'\"'\"'s here'",
        "  apptainer exec --nv /images/a b.sif python3 -m inflate3d.cli.main fit "
        "--config '/runs/a b/slurm/config.yaml' &",
        "run='/runs/a b'",
    ):
        assert line in script.splitlines()
    assert "WANDB_SERVICE=$(apptainer exec --nv /images/a b.sif python3 -m wandb beta core start" in script
    assert script.count("scontrol requeue") == 1


def test_of_an_array_each_task_has_its_number_in_command_run_and_log(tmp_path: Path) -> None:
    job = Job("s", ("fit", "--config", f"/r r/task-{TASK}.yaml"), tmp_path, "10", f"/r/{TASK}", array="0-3")
    script = render_script(job, Site(), working_folder=tmp_path)
    assert is_valid_bash(script)
    assert """fit --config '/r r/task-'"${SLURM_ARRAY_TASK_ID}".yaml &""" in script
    assert 'run=/r/"${SLURM_ARRAY_TASK_ID}"' in script
    assert {"--array=0-3", f"--output={tmp_path}/%A_%a.out"} <= options(script)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("2:30", 150), ("12:00:00", 43200), ("1-12", 129600), ("1-0:30", 88200), ("2-01:02:03", 176523)],
)
def test_times_are_read_as_slurm_reads_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"acount": "x"}, "site.yaml: unknown key 'acount'; close names: 'account'"),
        ({"account": "a b"}, "site.yaml: account is 'a b'; expected one word"),
        ({"modules": "cuda"}, "site.yaml: modules is 'cuda'; expected a list of strings"),
        ({"environment": {"A-B": 1}}, "'A-B' is not a valid variable name"),
        ({"gpu_option": "gpu"}, "unknown option 'gpu'; allowed: 'gpus-per-node', 'gres'"),
        ({"save_before_s": -1}, "save_before_s is -1; expected a whole number from 0"),
        ({"cpus_per_task": True}, "cpus_per_task is True; expected a whole number from 1"),
    ],
)
def test_a_wrong_site_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        Site.from_dict(values, where="site.yaml")
    assert message in str(refused.value)


def test_the_packaged_site_names_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--print_site"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert set(values) == set(Site.__dataclass_fields__)
    assert Site.from_dict(values) == Site()


# --------------------------------------------------------------------------------------------------------- the command


def test_without_sbatch_one_line_says_so_and_dry_run_shows_the_script_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(FIT) == 2
    error = capsys.readouterr().err
    assert "no `sbatch` on this machine" in error
    assert len(error.splitlines()) == 1
    assert main([*FIT, "--nodes", "2", "--dry-run", "--", "--trainer.max_steps", "7"]) == 0
    script = capsys.readouterr().out
    assert is_valid_bash(script)
    assert {"--nodes=2", "--ntasks-per-node=1", "--job-name=quickstart"} <= options(script)
    assert not any(option.startswith("--gpus") for option in options(script))
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "--config", "quickstart.yaml"], "--time is missing"),
        ([*FIT[:-1], "soon"], "--time is 'soon'; expected hours:minutes:seconds"),
        ([*FIT[:-1], "2:00"], "--time 2:00 is not longer than save_before_s of the site, 180 s"),
        ([*FIT, "--nodes", "0"], "--nodes is 0; it must be at least 1"),
        ([*FIT, "--nodes", "3"], "toy_video.batch_size is 8, the micro-batch of all ranks; 3 ranks cannot share it"),
        ([*FIT, "--gpus-per-node", "8"], "trainer.accelerator is cpu, but --gpus-per-node is 8"),
        ([*FIT, "--trainer.accelerator", "gpu"], "trainer.accelerator is gpu: give --gpus-per-node N"),
        ([*FIT, "--gpus-per-node", "2", "--tasks-per-node", "3"], "each GPU has one rank"),
        ([*FIT, "--trainer.devices", "2"], "--trainer.devices: give --gpus-per-node instead"),
        ([*FIT, "--", "--trainer.max_step", "2"], "unknown key 'max_step'; close names: 'max_steps'"),
        ([*FIT, "--partition", "a b"], "partition is 'a b'; expected one word"),
        ([*FIT, "--site", "none.yaml"], "--site: no file 'none.yaml'"),
        ([*FIT, "--array", "none.txt"], "--array: no file 'none.txt'"),
        (["submit", "--time", "1:00:00"], "no --config"),
        (["submit", "--time", "1:00:00", "--", "shards", "info", "x"], "`shards info` is not a job"),
        (["submit", "--time", "1:00:00", "--array", "x", "--", "shards", "build", "toy", "--output", "o"], "number of"),
        (["submit", "--time", "1:00:00", "--", "shards", "build", "toy"], "`shards build` needs --output"),
    ],
)
def test_what_cannot_run_is_refused_before_it_waits_in_a_queue(
    stand_in: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) <= MOST_LINES
    assert not (stand_in / "calls.txt").exists()


def test_a_submission_freezes_the_config_and_a_second_one_is_refused_while_the_first_lives(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FIT, "--nodes", "2", "--partition", "gpu", "--", "--model.optimizer.lr", "1e-4"]) == 0
    run = stand_in / "runs" / "quickstart"
    said = capsys.readouterr().out
    assert said.startswith(f"job 4711: {run}/slurm/submit.sbatch\n")
    assert f"platform status {run}" in said
    config = yaml.safe_load((run / "slurm" / "config.yaml").read_text())
    assert config["trainer"] | {"num_nodes": 2, "devices": 1, "accelerator": "cpu"} == config["trainer"]
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert "--partition=gpu" in options((run / "slurm" / "submit.sbatch").read_text())
    assert (stand_in / "calls.txt").read_text() == f"stand-in sbatch: --parsable {run}/slurm/submit.sbatch\n"

    (stand_in / "queue").write_text("4711|PENDING|Priority||1:00:00\n")
    assert main(FIT) == 2
    assert "job 4711 is PENDING and writes to it" in capsys.readouterr().err
    assert main(["status", str(run)]) == 0
    assert capsys.readouterr().out.startswith("job        4711 PENDING reason: Priority\n")
    (stand_in / "queue").write_text("4711|PENDING|None||1:00:00\n")
    assert main(["status", str(run)]) == 0
    assert capsys.readouterr().out.startswith("job        4711 PENDING\n")
    (stand_in / "queue").unlink()
    (stand_in / "refuse").touch()
    assert main(FIT) == 2
    assert "sbatch refused" in (error := capsys.readouterr().err)
    assert "invalid partition" in error


@pytest.mark.slow
def test_a_run_that_goes_on_is_submitted_with_the_very_config_of_a_first_start(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = stand_in / "runs" / "quickstart" / "slurm" / "config.yaml"
    assert main(FIT) == 0
    first = frozen.read_text()
    capsys.readouterr()
    assert main(["fit", "--config", str(frozen), "--print_config"]) == 0
    (frozen.parents[1] / "config.yaml").write_text(capsys.readouterr().out)
    assert main(FIT) == 0
    assert frozen.read_text() == first


def test_a_sweep_checks_every_line_and_gives_each_its_folder(
    stand_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = stand_in / "sweep.txt"
    sweep.write_text("--model.optimizer.lr 1e-3\n# a remark\n--model.optimizer.lr 1e-4 --seed_everything 1\n")
    assert main([*FIT, "--array", "sweep.txt"]) == 2
    assert "every task of the sweep would build them at once" in capsys.readouterr().err
    for name, kind in KINDS.items():
        toy = Toy(kind=kind, num_train=2, num_val=1, size=24)
        build_shards(toy, stand_in / "runs" / "quickstart" / "shards" / name, progress=False)
    assert main([*FIT, "--array", "sweep.txt"]) == 0
    assert "platform status" in capsys.readouterr().out
    folder = stand_in / "runs" / "quickstart" / "slurm"
    tasks = [yaml.safe_load((folder / f"task-{n}.yaml").read_text()) for n in (0, 1)]
    assert [t["trainer"]["default_root_dir"] for t in tasks] == [str(folder.parent / str(n)) for n in (0, 1)]
    assert [t["seed_everything"] for t in tasks] == [0, 1]
    assert "--array=0-1" in options((folder / "submit.sbatch").read_text())
    assert json.loads((folder / "job.json").read_text())["tasks"]["1"] == str(folder.parent / "1")
    sweep.write_text("--model.optimizer.lr 1e-3\n--trainer.max_step 3\n")
    assert main([*FIT, "--array", "sweep.txt"]) == 2
    assert "close names: 'max_steps'" in capsys.readouterr().err
    sweep.write_text("--trainer.default_root_dir there\n")
    assert main([*FIT, "--array", "sweep.txt"]) == 2
    assert "sweep.txt:1: each task has its own run folder" in capsys.readouterr().err


def test_a_build_goes_in_parts_and_its_merge_waits_for_all(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ["--", "shards", "build", "toy", "--output", "shards/toy", "--num_train", "6"]
    assert main(["submit", "--array", "4", "--time", "1:00:00", *build]) == 0
    folder = stand_in / "shards" / "toy.slurm"
    script = (folder / "submit.sbatch").read_text()
    assert is_valid_bash(script)
    assert 'shards build toy --output shards/toy --num_train 6 --part "${SLURM_ARRAY_TASK_ID}"/4 &' in script
    assert {"--array=1-4"} <= options(script)
    then = (folder / "then.sbatch").read_text()
    assert "--dependency=afterok:4711" in options(then)
    assert f"shards merge {stand_in}/shards/toy &" in then
    other = [word.replace("shards/toy", "shards/other") for word in build]
    assert main(["submit", "--array", "4", "--time", "1:00:00", *other, "--max_rejects=2"]) == 0
    then = (stand_in / "shards" / "other.slurm" / "then.sbatch").read_text()
    assert f"shards merge {stand_in}/shards/other --max_rejects 2 &" in then


def test_a_transfer_goes_in_parts_and_its_report_waits_for_all(stand_in: Path) -> None:
    words = ["transfer", "resnet18", "--dataset", "d", "--task", "volume_classification", "--output", "runs/t"]
    assert main(["submit", "--array", "8", "--gpus-per-node", "1", "--time", "1:00:00", "--", *words]) == 0
    folder = stand_in / "runs" / "t.slurm"
    script = (folder / "submit.sbatch").read_text()
    assert is_valid_bash(script)
    assert '--output runs/t --device cuda --part "${SLURM_ARRAY_TASK_ID}"/8 &' in script
    assert {"--array=1-8"} <= options(script)
    then = (folder / "then.sbatch").read_text()
    assert "--dependency=afterok:4711" in options(then)
    assert "--output runs/t --device cuda &" in then


# -------------------------------------------------------------------------------------- checkpoints of stock DeepSpeed


def test_zero_states_tell_how_many_ranks_wrote_them(tmp_path: Path) -> None:
    state = tmp_path / "state.ckpt"
    assert zero_ranks(state) == 0
    (state / "checkpoint").mkdir(parents=True)
    for rank in range(4):
        (state / "checkpoint" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
        (state / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").touch()
    assert zero_ranks(state) == 4
    (state / "checkpoint" / "zero").mkdir()
    assert zero_ranks(state) == 0


# -------------------------------------------------------------------------------------------------------------- status


def write_state(run: Path, **values: object) -> None:
    state = {
        "format": "inflate3d-state/1",
        **{"time": time.time(), "phase": "training", "step": 25, "max_steps": 100, "world_size": 1},
        **{"host": os.uname().nodename, "pid": os.getpid(), "job": None},
        **{"losses": {"train/loss": 1.25, "train/a/b/dice": 0.5, "lr": 0.001}, "steps_per_s": 0.5, "data_wait": 0.0125},
        **values,
    }
    run.mkdir(exist_ok=True)
    (run / "state.json").write_text(json.dumps(state))


def test_status_tells_step_loss_data_wait_and_time_left_without_slurm(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_state(folder / "run")
    assert main(["status", "run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("phase      training on ")
    assert lines[1:] == [
        "step       25 of 100 (25.0 %)",
        "loss       train/loss 1.25  lr 0.001",
        "speed      0.5 steps/s, 1.2 % of it waiting for data",
        "time left  2 min at this speed",
    ]


def test_status_tells_a_dead_process_a_silent_and_a_stopped_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    write_state(folder / "run", pid=gone.pid)
    assert main(["status", "run"]) == 0
    assert "the process is gone" in capsys.readouterr().out
    write_state(folder / "run", host="elsewhere", time=time.time() - 1000)
    assert main(["status", "run"]) == 0
    assert "silent since then: a long step, or it hangs" in capsys.readouterr().out
    write_state(folder / "run", phase="stopped")
    assert main(["status", "run"]) == 0
    assert "stopped 0 s ago; run the same command again to continue" in capsys.readouterr().out


def test_status_of_what_is_no_run_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nowhere"]) == 2
    assert "no run folder 'nowhere'" in capsys.readouterr().err
    (folder / "empty").mkdir()
    assert main(["status", "empty"]) == 2
    assert "empty is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42 s"), (725, "12 min"), (11100, "3 h 05 min"), (187200, "2 d 04 h")]
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
