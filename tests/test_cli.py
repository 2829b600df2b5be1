"""The command as a user meets it: lists without torch, and errors of a few lines with a remedy and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from inflate3d.cli.config import load_config, packaged_configs
from inflate3d.cli.main import MOST_LINES, main
from nightly import slow_but

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def toy_config(folder: Path, **changes: object) -> Path:
    """Write quickstart.yaml with changes, given as dotted keys with __ for the dots, and return its path."""
    config = load_config(["quickstart.yaml"], [f"--data.root={folder / 'shards'}"])
    for key, value in changes.items():
        *above, last = key.split("__")
        node = config.values
        for step in above:
            node = node[step]
        node[last] = value
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(config.values))
    return path


def write_manifest(folder: Path, kind: str) -> None:
    """Write shards of four toy cases."""
    from inflate3d.data.shards.writer import build_shards
    from inflate3d.datasets.toy import Toy

    build_shards(Toy(kind=kind, num_train=2, num_val=2), folder, progress=False)


@pytest.mark.parametrize("arguments", [["--help"], ["datasets", "list"], ["tasks", "list"], ["configs", "list"]])
def test_help_and_lists_answer_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom inflate3d.cli.main import main\n"
        f"try: code = main({arguments})\nexcept SystemExit as stop: code = stop.code\n"
        "assert code == 0, code\nassert 'torch' not in sys.modules\nassert 'lightning' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model__backbone__name",
            "resnet51",
            "model.backbone.name: unknown model 'resnet51'; close names: 'resnet51q'",
        ),
        ("model__backbone__nam", 1, "model.backbone.nam: unknown key 'nam'; close names: 'name'"),
        ("trainr", {}, "trainr: unknown key 'trainr'; close names: 'trainer'"),
        ("trainer__max_stepss", 1, "trainer.max_stepss: unknown key 'max_stepss'; close names: 'max_steps'"),
        ("model__optimizer__init_args__lrr", 1, "model.optimizer.init_args.lrr: unknown key 'lrr'; close names: 'lr'"),
        ("data__datasets__toy_video__weigt", 1, "unknown key 'weigt'; close names: 'weight'"),
        ("data__datasets__toy_video__batch_size", 0, "toy_video.batch_size is 0; expected a whole number above 0"),
        ("data__datasets__toy_video__batch_size", 2.5, "batch_size is 2.5; expected a whole number above 0"),
        ("data__datasets__toy_video__build__class_path", "Toi", "unknown dataset 'Toi'; close names: 'toy'"),
        (
            "data__datasets__toy_video__build__init_args__kin",
            1,
            "unknown key 'kin'; close names: 'kind'",
        ),
        ("data__datasets__toy_video__sample__num_frame", 3, "unknown key 'num_frame'; close names: 'num_frames'"),
        ("data__datasets__toy_volumes__targets", {"msk": {}}, "toy_volumes.targets: unknown target 'msk'; close names"),
        ("data__datasets__extra", {"batch_size": 2}, "data.datasets.extra: no task uses this dataset"),
        ("model__tasks__motion__class_path", "VideoActoin", "unknown task 'VideoActoin'; close names: 'video_action'"),
        ("model__tasks__motion__init_args__drop", 0.1, "unknown key 'drop'; close names: 'dropout'"),
        (
            "model__tasks__motion__init_args__datasets",
            ["toy_vido"],
            "unknown dataset 'toy_vido'; close names",
        ),
        ("model__tasks__motion__init_args__datasets", {"toy_vido": "label"}, "unknown dataset 'toy_vido'; close names"),
        ("model__tasks__motion__init_args__datasets", {"toy_video": "lable"}, "unknown target 'lable'; close names"),
        ("data__datasets__toy_video__views", {"local": {"sampel": {}}}, "views.local.sampel: unknown key 'sampel'"),
        ("data__datasets__toy_shapes__sample", {"patch_size": [8, 8, 8], "size": [8, 8, 8]}, "give one or the other"),
        ("model__tasks__motion__init_args", {}, "model.tasks.motion: VideoAction needs datasets under init_args"),
        (
            "model__tasks__motion__class_path",
            "VolumeClassification",
            "VolumeClassification takes volume; dataset 'toy_video' holds video",
        ),
        (
            "model__tasks__blobs__class_path",
            "VolumeClassification",
            "VolumeClassification needs a ClassTarget; targets of dataset 'toy_volumes': mask: a mask of 3 classes",
        ),
        ("trainer__sync_batchnorm", True, "trainer.sync_batchnorm is true: it would replace the norms of each domain"),
        ("model__backbone__plan", "i3d", "8 frames or slices; the plan i3d needs at least 9. Use longer samples"),
        ("model__backbone__stems", {"rgb": 4, "ct": 1, "mask": 1}, "stems.rgb is 4, but 'toy_video' has 3 channels"),
        ("model__backbone__stems", {"rgb": 3, "mri": 1, "mask": 1}, "unknown stem 'ct'"),
        ("model__start_heads", {"toy_vido": "organ"}, "unknown dataset 'toy_vido'; close names: 'toy_video'"),
        ("model__start_heads", {"toy_video": "organ"}, "heads come with published weights"),
        (
            "model__backbone__timm_kwargs",
            {"in_chans": 2},
            "has 3 channels (red, green, blue); the net's stem",
        ),
    ],
)
def test_a_wrong_config_is_refused_with_file_key_close_name_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    value: object,
    message: str,
) -> None:
    path = toy_config(tmp_path, **{key: value})
    monkeypatch.setitem(sys.modules, "inflate3d.cli.run", None)  # what imports torch must not be needed for an answer
    assert main(["fit", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "mine.yaml:" in error
    assert len(error.splitlines()) <= MOST_LINES


@pytest.mark.parametrize(("name", "decay"), slow_but([("torch.optim.SGD", 0), ("Adam", 0), (None, 0.01)], 1))
def test_an_optimizer_has_the_defaults_of_its_own_class(tmp_path: Path, name: str | None, decay: float) -> None:
    from inflate3d.cli.check import check_config
    from inflate3d.cli.run import Run

    optimizer = {"init_args": {"lr": 0.5}} | ({"class_path": name} if name else {})
    config = load_config([str(toy_config(tmp_path, model__optimizer=optimizer))])
    check_config(config)
    given = yaml.safe_load(Run(config, instantiate=False).dump())["model"]["optimizer"]
    assert given["class_path"].rpartition(".")[2] == (name or "AdamW").rpartition(".")[2]
    assert given["init_args"]["lr"] == 0.5
    assert given["init_args"]["weight_decay"] == decay


def test_missing_shards_are_answered_with_the_build_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "multitask.yaml", "--data.root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"data.datasets.k400: no shards in {tmp_path}/k400" in error
    assert "platform shards build" in error
    assert len(error.splitlines()) <= MOST_LINES


def test_shards_of_another_medium_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifest(tmp_path / "shards" / "toy_video", "volume_classification")
    assert main(["fit", "--config", str(toy_config(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert "VideoAction takes video; dataset 'toy_video' holds volume" in error


AGES = '''"""Ages: a number, of volumes."""
from inflate3d.contracts import AbstractTask
from inflate3d.targets import ValueTarget


class Ages(AbstractTask):
    media = ("volume",)
    target = ValueTarget
'''


@pytest.fixture
def strangers_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a task that another package brings."""
    from inflate3d.discover import plug_ins

    folder = tmp_path / "site"
    (folder / "ages-1.dist-info").mkdir(parents=True)
    (folder / "ages.py").write_text(AGES)
    (folder / "ages-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ages\nVersion: 1\n")
    (folder / "ages-1.dist-info" / "entry_points.txt").write_text("[inflate3d.tasks]\nages = ages\n")
    monkeypatch.syspath_prepend(str(folder))
    plug_ins.cache_clear()
    yield folder
    plug_ins.cache_clear()


def one_task(folder: Path, dataset: dict[str, object], wanted: object) -> Path:
    """A config of one dataset "mine" and the stranger's task on it."""
    task = {"class_path": "Ages", "init_args": {"datasets": wanted}}
    build = {"batch_size": 2, "sample": dataset.pop("sample", {}), "build": dataset}
    return toy_config(folder, model__tasks={"ages": task}, data__datasets={"mine": build})


def with_two_numbers(folder: Path) -> dict[str, object]:
    """A dataset whose table has a label and two columns of numbers."""
    (folder / "cases.csv").write_text("image,label,age,score\na.npy,x,41.7,1\nb.npy,y,,2\n")
    arguments = {"root": str(folder), "modality": "mri", "values": "age:years,score"}
    return {"class_path": "VolumeCSV", "init_args": arguments}


TOY_VIDEO = {
    "class_path": "Toy",
    "init_args": {"kind": "video_classification"},
    "sample": {"num_frames": 8, "crop_size": 24},
}


@pytest.mark.parametrize(
    ("dataset", "wanted", "words"),
    [
        (TOY_VIDEO, ["mine"], "Ages takes volume; dataset 'mine' holds video"),
        (
            {"class_path": "Toy", "init_args": {"kind": "volume_classification"}},
            ["mine"],
            "Ages needs a ValueTarget; targets of dataset 'mine': label: 3 classes: ball, cube, cross",
        ),
        (None, ["mine"], "Ages needs a ValueTarget; dataset 'mine' has 2: age, score. Name one: datasets: {mine: age}"),
        (None, {"mine": "label"}, "Ages needs a ValueTarget; 'label' of dataset 'mine' is none. Its targets: label: 2"),
        (None, {"mine": "aeg"}, "unknown target 'aeg'; close names: 'age'"),
    ],
)
def test_a_task_on_a_dataset_without_its_medium_or_target_is_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    strangers_task: Path,
    dataset: dict[str, object] | None,
    wanted: object,
    words: str,
) -> None:
    path = one_task(tmp_path, dict(dataset or with_two_numbers(tmp_path)), wanted)
    assert main(["fit", "--check", "--config", str(path)]) == 2
    error = capsys.readouterr().err
    _, line = (i for i, text in enumerate(path.read_text().splitlines(), 1) if text.strip() == "datasets:")
    assert f"mine.yaml:{line}: model.tasks.ages.init_args.datasets: " in error
    assert words in error
    assert len(error.splitlines()) <= MOST_LINES


def test_a_target_is_chosen_by_name_and_the_check_needs_no_torch(tmp_path: Path, strangers_task: Path) -> None:
    chosen = one_task(tmp_path, with_two_numbers(tmp_path), {"mine": "score"})
    code = (
        "import sys\nfrom inflate3d.cli.config import load_config\nfrom inflate3d.cli.check import check_config\n"
        f"check_config(load_config([{str(chosen)!r}]))\n"
        "assert 'torch' not in sys.modules\nassert 'lightning' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(strangers_task)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fti"], "unknown command 'fti'; close names: fit"),
        (["tasks", "lst"], "invalid choice: 'lst'"),
        (["datasets", "show", "msdd"], "unknown dataset 'msdd'; close names: 'msd'"),
        (["datasets", "list", "--all"], "unknown argument '--all'"),
        (["fit"], "no --config. Start with: platform fit --config quickstart.yaml"),
        (["fit", "--config", "quickstrat.yaml"], "unknown config 'quickstrat.yaml'; close names: 'quickstart.yaml'"),
        (["fit", "--config", "quickstart.yaml", "--trainer.max_step", "3"], "close names: 'max_steps'"),
        (["shards", "build", "toi", "--output", "x"], "unknown dataset 'toi'; close names: 'toy'"),
        (["shards", "info", "nowhere"], "no shards in nowhere"),
    ],
)
def test_a_wrong_command_line_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= MOST_LINES


def test_debug_shows_the_traceback_and_other_errors_are_never_dressed_as_the_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from inflate3d.errors import InputError

    with pytest.raises(InputError):
        main(["fti", "--debug"])

    def fail(*args: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("inflate3d.cli.tasks.print_table", fail)
    with pytest.raises(ValueError, match="ours"):
        main(["tasks", "list"])


def test_without_the_train_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    monkeypatch.delitem(sys.modules, "inflate3d.document", raising=False)
    assert main(["fit", "--config", "quickstart.yaml"]) == 2
    assert "pip install 'inflate3d[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"), [("blosc2", "train"), ("fsspec", "train"), ("orjson", "train"), ("s3fs", "s3")]
)
def test_what_an_extra_brings_is_named_with_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, extra: str
) -> None:
    def fail(*_: object) -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr("inflate3d.cli.tasks.print_table", fail)
    assert main(["tasks", "list"]) == 2
    assert f"this needs {module!r}" in (error := capsys.readouterr().err)
    assert f"pip install 'inflate3d[{extra}]'" in error


@pytest.mark.slow
def test_shards_behind_an_address_are_checked_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    config = toy_config(tmp_path)
    kinds = {"volumes": "volume_segmentation", "shapes": "volume_classification", "video": "video_classification"}
    for name, kind in kinds.items():
        write_manifest(tmp_path / "shards" / f"toy_{name}", kind)
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        assert main(["fit", "--check", "--config", str(config), "--data.root", f"{address}/shards"]) == 0
        assert "all checks passed" in capsys.readouterr().out
        assert main(["fit", "--check", "--config", str(config), "--data.root", f"{address}/absent"]) == 2
        assert f"{address}/absent/toy_" in (error := capsys.readouterr().err)
        assert "no such file" in error
        server.shutdown()


@pytest.mark.slow
def test_check_stops_before_training(tmp_path: Path, platform_command: Command) -> None:
    done = platform_command("fit", "--config", "quickstart.yaml", "--check")
    assert done.returncode == 0, done.stderr
    assert str(packaged_configs()["quickstart.yaml"]) in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_print_config_gives_a_config_that_can_be_given_back(tmp_path: Path, platform_command: Command) -> None:
    done = platform_command("fit", "--config", "quickstart.yaml", "--print_config", "--trainer.max_steps", "7")
    assert done.returncode == 0, done.stderr
    whole = yaml.safe_load(done.stdout)
    assert whole["trainer"]["max_steps"] == 7
    assert set(whole["data"]["datasets"]) == {"toy_video", "toy_volumes", "toy_shapes"}
    (tmp_path / "whole.yaml").write_text(done.stdout)
    again = platform_command("fit", "--config", "whole.yaml", "--print_config")
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load(again.stdout) == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--trainer.max_steps", "abc"], "--trainer.max_steps: expected int. Got value: abc"),
        (["--trainer.logger", "{class_path: WandbLoger}"], "unknown class 'WandbLoger'; close names: 'WandbLogger'"),
        (["--trainer.precision", "bf17"], "trainer.precision: got bf17; expected"),
    ],
)
def test_what_only_the_parser_can_see_is_refused_as_shortly(
    platform_command: Command, option: list[str], message: str
) -> None:
    done = platform_command("fit", "--config", "quickstart.yaml", *option)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= MOST_LINES


@pytest.mark.slow
def test_a_short_fit_leaves_a_whole_run_folder_and_goes_on_in_it(tmp_path: Path, platform_command: Command) -> None:
    write = ["--publish", "null", "--pictures", "false", "--data.num_workers", "0", "--trainer.val_check_interval", "3"]
    smaller = ["--data.datasets.toy_video", "null", "--model.tasks.motion", "null"]
    smaller += ["--data.datasets.toy_volumes", "null", "--model.tasks.blobs", "null"]
    command = ["fit", "--config", "quickstart.yaml", *write, *smaller]
    first = platform_command(*command, "--trainer.max_steps", "2")
    assert first.returncode == 0, first.stderr
    run = tmp_path / "runs" / "quickstart"
    assert {"config.yaml", "environment.json", "metrics.csv", "checkpoints"} <= {p.name for p in run.iterdir()}
    second = platform_command(*command, "--trainer.max_steps", "3")
    assert second.returncode == 0, second.stderr
    assert "from step 2" in second.stdout
    assert len(json.loads((run / "environment.json").read_text())["starts"]) == 2
    third = platform_command(*command, "--trainer.max_steps", "3")
    assert "this run has finished: 3 of 3 steps" in third.stdout
    changed = platform_command(*command, "--trainer.max_steps", "4", "--model.optimizer.lr", "1e-4")
    assert changed.returncode == 2
    assert "model.optimizer.init_args.lr: was 0.004, now 0.0001" in changed.stderr
    validated = platform_command("validate", "--config", "runs/quickstart/config.yaml")
    assert validated.returncode == 0, validated.stderr
    assert "shapes/toy_shapes/accuracy" in validated.stdout
