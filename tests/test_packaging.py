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
from importlib import metadata
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


def make_environment(folder: Path, *, version: str | None = None, only: set[str] | None = None) -> Path:
    """Return the interpreter of a fresh environment that has the wheel, and of this environment's packages the rest.

    version: stated by the wheel in place of its own. only: distributions to take, default all.
    """
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A copy: setuptools leaves build/ and *.egg-info beside what it builds, and would take stale files from there.
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    if version is not None:
        project = (source / "pyproject.toml").read_text()
        (source / "pyproject.toml").write_text(re.sub(r'(?m)^version = ".*"', f'version = "{version}"', project))
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    venv.create(environment, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies come from this environment, by a folder of links that leaves the editable install out.
    for entry in everything() if only is None else entries_of(only):
        if "inflate3d" not in entry.name and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return environment / "bin" / "python"


def everything() -> list[Path]:
    return list(Path(sysconfig.get_path("purelib")).iterdir())


def entries_of(names: set[str]) -> list[Path]:
    """The files and folders that these distributions put into site-packages."""
    found = set()
    for name in names:
        distribution = metadata.distribution(name)
        tops = {Path(f).parts[0] for f in distribution.files or [] if not str(f).startswith("..")}
        found |= {Path(str(distribution.locate_file(top))) for top in tops if top != "__pycache__"}
    return sorted(found)


def core_distributions() -> set[str]:
    """What pip would install for `pip install inflate3d`, without extras."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo, done = [Requirement(r) for r in project["dependencies"]], set()
    while todo:
        requirement = todo.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in done or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        done.add(name)
        todo += [Requirement(r) for r in metadata.requires(name) or []]
        for extra in requirement.extras:
            marked = [Requirement(r) for r in metadata.requires(name) or []]
            todo += [r for r in marked if r.marker and r.marker.evaluate({"extra": extra})]
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel and all packages."""
    return make_environment(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the core's dependencies alone, and a later version of the wheel."""
    return make_environment(tmp_path_factory.mktemp("core"), version="0.1.1", only=core_distributions())


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """Run the installed interpreter outside the source tree; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Each package is the first of ours that its process imports; what it needs of others is there already.
IMPORTS = """
import importlib, os, sys
import lightning.pytorch, timm, torch, torchio
assert "inflate3d" not in sys.modules
for name in sys.argv[1:]:
    if not os.fork():
        importlib.import_module(name)
        os._exit(0)
    assert os.wait()[1] == 0, name
"""


@pytest.mark.slow
def test_the_wheel_holds_every_package_and_config(installed: Path, tmp_path: Path) -> None:
    code = "import inflate3d, sys; print(inflate3d.__file__)"
    assert str(installed.parents[1]) in run(installed, "-c", code, cwd=tmp_path)
    run(installed, "-c", IMPORTS, *sorted(folders_with_modules()), cwd=tmp_path)
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


CORE = """
import importlib.util, sys, warnings
warnings.simplefilter("error")  # a replay that does not hold warns
import importlib.metadata
absent = ("lightning", "torchio", "nibabel", "rich", "monai", "s3fs", "av", "webdataset", "torchmetrics", "xxhash")
assert not [name for name in absent if importlib.util.find_spec(name)]
import torch, inflate3d, inflate3d.timm
x = torch.linspace(-1, 1, 3 * 4 * 32 * 32).reshape(1, 3, 4, 32, 32)
net = inflate3d.create_model(sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    print(net(x).double().sum().item())
assert net.input_spec["versions"]["inflate3d"] != importlib.metadata.version("inflate3d") == "0.1.1"
print(tuple(inflate3d.create_transform(net)(torch.zeros(3, 4, 8, 8)).shape))
print(inflate3d.create_segmenter(sys.argv[1], pretrained=True, num_classes=2).eval()(x).shape[1])
print(inflate3d.publish(net, sys.argv[2]).name, inflate3d.list_pretrained())
shipped = inflate3d.create_model(inflate3d.list_pretrained()[0], pretrained=True).eval()  # from the wheel, offline
print(tuple(shipped(torch.zeros(1, 1, 16, 32, 32)).shape))
"""


@pytest.mark.slow
def test_published_weights_load_with_the_core_alone_in_a_later_version(core: Path, tmp_path: Path) -> None:
    import inflate3d
    import torch
    from loopback_servers import faulty

    folder = inflate3d.publish(inflate3d.create_model("test_resnet", num_classes=0), str(tmp_path / "site" / "weights"))
    x = torch.linspace(-1, 1, 3 * 4 * 32 * 32).reshape(1, 3, 4, 32, 32)
    with torch.no_grad():
        expected = inflate3d.create_model(f"local-dir:{folder}", pretrained=True).eval()(x).double().sum().item()
    with faulty(tmp_path / "site") as (url, _), pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFLATE3D_CACHE", str(tmp_path / "cache"))
        patch.setenv("no_proxy", "127.0.0.1")
        for name in (f"local-dir:{folder}", f"{url}/weights"):
            lines = run(core, "-c", CORE, name, str(tmp_path / "again"), cwd=tmp_path).splitlines()
            assert float(lines[0]) == pytest.approx(expected, rel=1e-6)
            shipped = ["again ['tf_efficientnet_lite0_3d.v2']", "(1, 1280)"]
            assert lines[1:] == ["(3, 4, 8, 8)", "2", *shipped]


def test_the_command_is_installed_under_both_names() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"platform": "inflate3d.cli.main:main", "inflate3d": "inflate3d.cli.main:main"}
