"""What several test files share: the project's root, the real data beside it, and the command as a user runs it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # loopback_servers and warm_process, which several test files use

from warm_process import PLATFORM, WarmProcess  # noqa: E402

if TYPE_CHECKING:
    from trained_run import Made


def pytest_collection_finish() -> None:
    """Take all that imports and collection made out of the garbage collector's rounds: they would cost a tenth."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without a CUDA device the tests that need one say so."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the project; tests that use it carry the marker `data`."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the project's root")
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A finished run, trained once for all files that predict with it: half a minute."""
    from trained_run import train

    return train(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def predict(made: Made, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `platform predict` on the finished run; return what it printed, after checking the exit code."""

    from inflate3d.cli.main import main

    def run(source: Path, output: Path, *options: str, code: int = 0) -> str:
        words = ["predict", str(made.run), "--input", str(source), "--output", str(output), "--device", "cpu", *options]
        assert main(words) == code
        seen = capsys.readouterr()
        return seen.err if code else seen.out

    return run


@pytest.fixture
def platform_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `platform ARGUMENTS...` in a process of its own, in `tmp_path`.

    cold: one that imports everything itself. So does `platform shards`, which needs little.
    """

    def run(
        *arguments: str, timeout_s: float = 300, cwd: Path = tmp_path, cold: bool = False
    ) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "COLUMNS": "160"}
        if not cold and arguments[0] != "shards":
            return WarmProcess(PLATFORM, *arguments, cwd=cwd, env=environment).done(timeout_s)
        command = [sys.executable, "-m", "inflate3d.cli.main", *arguments]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=timeout_s
        )

    return run
