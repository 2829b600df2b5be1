"""The wheel: built, installed elsewhere, and used from there; nothing may be found by way of the source tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def folders_with_modules() -> set[str]:
    """Every folder of the source tree that is a package, by its import name."""
    homes = {"inflate3d": ROOT / "platform" / "inflate3d"}
    homes |= {f"inflate3d.{name}": ROOT / name for name in ("tasks", "datasets", "configs", "slurm")}
    return {
        ".".join([package, *file.parent.relative_to(folder).parts])
        for package, folder in homes.items()
        for file in folder.rglob("__init__.py")
    }


def test_every_package_is_listed_in_pyproject() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(listed["packages"]) == folders_with_modules()
    assert set(listed["package-dir"]) == set(listed["packages"])


def test_the_lock_pins_every_dependency_and_names_no_place_of_one_machine() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lock.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["train"], *extras["test"]]:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        assert re.sub(r"[-_.]+", "-", name[0]).lower() in pinned, f"{requirement} is not locked: make lock"
    assert "file:" not in lock
    assert "git+" not in lock


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that has the wheel, and this environment's packages for the rest."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A copy: setuptools leaves build/ and *.egg-info beside what it builds, and would take stale files from there.
    source = folder / "source"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies come from this environment, by a folder of links that leaves the editable install out.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "inflate3d" not in entry.name and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return environment / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """Run the installed interpreter outside the source tree; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_config(installed: Path, tmp_path: Path) -> None:
    code = "import inflate3d, sys; print(inflate3d.__file__)"
    assert str(installed.parents[1]) in run(installed, "-c", code, cwd=tmp_path)
    for name in sorted(folders_with_modules()):
        run(installed, "-c", f"import {name}", cwd=tmp_path)
    listed = run(installed, "-m", "inflate3d.cli.main", "configs", "list", cwd=tmp_path)
    for config in (ROOT / "configs").rglob("*.yaml"):
        assert config.relative_to(ROOT / "configs").as_posix() in listed


@pytest.mark.slow
def test_the_installed_command_lists_and_checks(installed: Path, tmp_path: Path) -> None:
    assert "commands:" in run(installed, "-m", "inflate3d.cli.main", "--help", cwd=tmp_path)
    datasets = run(installed, "-m", "inflate3d.cli.main", "datasets", "list", cwd=tmp_path)
    assert all(name in datasets for name in ("msd", "toy", "video_folder"))
    checked = run(installed, "-m", "inflate3d.cli.main", "fit", "--config", "quickstart.yaml", "--check", cwd=tmp_path)
    assert "all checks passed" in checked


@pytest.mark.slow
def test_the_installed_create_model_answers(installed: Path, tmp_path: Path) -> None:
    code = (
        "import torch, inflate3d; model = inflate3d.create_model('resnet10t', num_classes=0).eval(); "
        "print(tuple(model(torch.zeros(1, 3, 4, 32, 32)).shape))"
    )
    assert run(installed, "-W", "ignore", "-c", code, cwd=tmp_path).strip() == "(1, 512)"


def test_the_command_is_installed_under_both_names() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"platform": "inflate3d.cli.main:main", "inflate3d": "inflate3d.cli.main:main"}
