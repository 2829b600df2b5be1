"""`platform doctor`: what it says of a healthy config and of shards that are not, and what its times add up to."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from inflate3d.cli.main import main
from inflate3d.data.shards.writer import build_shards
from inflate3d.data.stream.stage_times import STAGES, measure_stages
from inflate3d.datasets.toy import Toy
from inflate3d.errors import InputError
from inflate3d.training import DataModule
from warm_process import WarmProcess


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    kinds = {"video": "video_classification", "volumes": "volume_segmentation", "shapes": "volume_classification"}
    for name, kind in kinds.items():
        build_shards(Toy(kind=kind, num_train=6, num_val=2, num_frames=8), root / f"toy_{name}", progress=False)
    return root


def command(root: Path) -> list[str]:
    return ["doctor", "--config", "quickstart.yaml", "--data.root", str(root), "--samples", "3", "--repeats", "0"]


def test_a_healthy_config_is_described(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root)) == 0
    said = capsys.readouterr().out
    assert f"torch {version('torch')}" in said
    assert "CPU cores" in said
    assert re.search(r"toy_video +1?2 +\d", said)
    rows = [line.split() for line in said.splitlines() if line.startswith("toy_")]
    times = [row for row in rows if len(row) == 3 + len(STAGES)]
    assert len(times) == 3
    for _, *stages, total, broken in times:
        assert sum(map(float, stages)) == pytest.approx(float(total), abs=0.05)
        assert broken == "0"
    assert re.search(r"mostly for \w+ of toy_\w+ \(\d+% of the loading\)", said)


@pytest.mark.slow
def test_what_a_run_costs_follows_from_the_step_of_one_rank(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    many = ["--trainer.devices", "2", "--trainer.num_nodes", "2", "--trainer.accelerator", "cpu"]
    assert main([*command(root)[:-2], "--repeats", "1", *many, "--trainer.max_steps", "36000"]) == 0
    said = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in (line.split() for line in said.splitlines()) if row[-1:] == ["GB"]}
    assert {name: row[0] for name, row in rows.items()} == {"toy_video": "2", "toy_volumes": "1", "toy_shapes": "2"}
    loading = re.search(r"micro-batch takes [\d.]+ ms to load on average, ([\d.]+) ms", said)
    assert loading
    loading_ms = float(loading.group(1))
    step_ms = max(sum(float(row[1]) for row in rows.values()), 3 * loading_ms / 4)  # one micro-batch of each dataset
    found = re.search(r"the run: 36000 steps, (\d+) samples .* on 4 such devices, ([\d.e+]+) device-hours", said)
    assert found
    assert int(found.group(1)) == 36000 * (8 + 2 + 8)
    assert float(found.group(2)) == pytest.approx(4 * 36000 * step_ms / 3.6e6, rel=0.05)
    assert "ZeRO-2 leaves" in said
    assert not list(tmp_path.iterdir())  # the trial leaves no run behind


MEASURED = """import sys
from inflate3d.cli.main import main
from inflate3d.training.run.step_meter import peak_memory_gb
assert main(sys.argv[1:]) == 0
print("peak GB", peak_memory_gb())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak anew")
def test_peak_memory_is_told_beforehand(root: Path, tmp_path: Path) -> None:
    """Within 15 % of what the fit then takes: large patches alone, and several small datasets."""
    program = tmp_path / "measured.py"
    program.write_text(MEASURED)
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    config |= {"publish": None, "data": {**config["data"], "root": str(root), "num_workers": 0}}
    config["model"]["warmup_steps"] = 0
    peaks = []
    for name in ("several", "alone"):
        if name == "alone":
            config["model"]["tasks"] = {"blobs": config["model"]["tasks"]["blobs"]}
            config["data"]["datasets"] = {"toy_volumes": {"batch_size": 2, "sample": {"patch_size": [64, 80, 80]}}}
        steps = {"accumulate_grad_batches": 1, "max_steps": 3, "val_check_interval": 3, "default_root_dir": name}
        config["trainer"] = {**config["trainer"], **steps}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        words = ("--config", f"{name}.yaml")
        doctor = WarmProcess(program, "doctor", *words, "--samples", 2, "--repeats", 1, cwd=tmp_path).done()
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        told = max(float(line.split()[-2]) for line in doctor.stdout.splitlines() if line.endswith(" GB"))
        done = WarmProcess(program, "fit", *words, cwd=tmp_path).done()
        assert done.returncode == 0, done.stdout + done.stderr
        peaks.append(float(done.stdout.rsplit("peak GB ", 1)[1]))
        print(name, told, peaks[-1])
        assert abs(told - peaks[-1]) <= 0.15 * peaks[-1]
    assert peaks[1] > 1.4 * peaks[0]  # what is told hangs on the config, not on the libraries


def test_shards_that_are_cut_or_missing_are_named(root: Path, tmp_path: Path, capsys: Any) -> None:
    import shutil

    shutil.copytree(root, tmp_path / "shards")
    tar = next((tmp_path / "shards" / "toy_shapes").glob("train-*.tar"))
    tar.write_bytes(tar.read_bytes()[:-512])
    next((tmp_path / "shards" / "toy_video").glob("val-*.index.json")).unlink()
    assert main(command(tmp_path / "shards")) == 2
    said = capsys.readouterr().err
    assert f"{tar}: " in said
    assert "the manifest states" in said
    assert "val-000000.index.json: is missing" in said


def test_each_stage_is_charged_with_its_own_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("inflate3d.data.stream.stage_times.time.perf_counter", lambda: now[0])
    sample = {"num_frames": 4, "crop_size": 16, "short_side": 18}
    augment = [{"class_path": "RandomHorizontalFlip"}]
    data = DataModule(str(root), {"toy_video": {"batch_size": 2, "sample": sample, "augment": augment}}, seed=0)
    source = data.source("toy_video", "train")
    stage: Any = source.stage.stages["image"]  # type: ignore[attr-defined]
    pauses = {"decode": 0.5, "normalise": 0.25, "augment": 1.0}
    for name, seconds in pauses.items():
        setattr(stage, name, slowed(getattr(stage, name), seconds, now))
    times = measure_stages(source, 4)
    assert {name: ms for name, ms in times.milliseconds.items() if ms} == {n: 1e3 * s for n, s in pauses.items()}
    assert (times.slowest, times.total) == ("augment", 1750)


def slowed(call: Any, seconds: float, now: list[float]) -> Any:
    def slow(*args: Any, **kwargs: Any) -> Any:
        now[0] += seconds
        return call(*args, **kwargs)

    return slow


def test_wrong_input_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 2
    assert main([*command(root), "--samples", "0"]) == 2
    assert main([*command(root), "--repeats", "-1"]) == 2
    assert main(["doctor", "--config", "quickstart.yaml", "--data.rot", "x"]) == 2
    assert "close names: 'root'" in capsys.readouterr().err


def test_a_dataset_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    build_shards(Toy(kind="volume_classification", num_train=3, num_val=1), tmp_path / "shapes", progress=False)
    data = DataModule(str(tmp_path), {"shapes": {"batch_size": 2}}, seed=0)
    for tar in (tmp_path / "shapes").glob("*.tar"):
        tar.unlink()
    with pytest.raises(InputError, match=r"all of 6 samples are broken, the last: .*No such file"):
        measure_stages(data.source("shapes", "train"), 3)
