"""What several test files share: the project's root, the real data beside it, and the command as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))  # loopback_servers, which several test files use


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


@pytest.fixture
def platform_command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `platform ARGUMENTS...` in a process of its own, in `tmp_path`."""

    def run(*arguments: str, timeout_s: float = 300, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "inflate3d.cli.main", *arguments]
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "COLUMNS": "160"}
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=timeout_s
        )

    return run
