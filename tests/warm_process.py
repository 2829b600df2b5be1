"""Processes that start at once: forked from a server that has imported what a run imports, which takes 12 s otherwise.

They are processes in every other way: a pid, session, folder, environment and exit code of their own. What modules
read while they are imported (an environment variable, the hash seed) is the server's: a test of that, and of a start
from nothing, runs `sys.executable`.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from multiprocessing import forkserver, get_context, set_start_method
from pathlib import Path

import inflate3d.cli.main

PLATFORM = Path(inflate3d.cli.main.__file__)
IMPORTED = ("inflate3d.cli.run", "inflate3d.tasks", "inflate3d.datasets", "timm", "torchio", "torch._dynamo")
_CLEAN = dict(os.environ)


class WarmProcess:
    """A Python program that runs; `program` is its file, PLATFORM for the command itself."""

    def __init__(self, program: Path, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        _start_server()
        self.arguments = [str(program), *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [os.path.join(self._folder.name, name) for name in ("stdout", "stderr")]
        environment = dict(os.environ if env is None else env)
        self._process = get_context("forkserver").Process(
            target=_run, args=(self.arguments, str(cwd), environment, self._printed)
        )
        self._process.start()
        self.pid: int = self._process.pid or 0  # and its session's

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float = 300) -> int:
        """Return the exit code; after `timeout_s`, or where the test is broken off, end it with all its workers.

        Raises: subprocess.TimeoutExpired.
        """
        try:
            self._process.join(timeout_s)
        finally:
            if (code := self.poll()) is None:
                self.kill()
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout_s, *self._read())
        return code

    def kill(self) -> None:
        """End it and its workers at once, by SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()

    def done(self, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait; return the exit code and all that was printed."""
        return subprocess.CompletedProcess(self.arguments, self.wait(timeout_s), *self._read())

    def _read(self) -> Iterator[str]:
        for path in self._printed:
            yield Path(path).read_text(encoding="utf-8") if os.path.exists(path) else ""


@cache
def _start_server() -> None:
    """In the environment that the tests started in, whatever the first test to come here has changed."""
    changed = dict(os.environ)
    forkserver.set_forkserver_preload(list(IMPORTED))
    try:
        _set_environment(_CLEAN)
        forkserver.ensure_running()
    finally:
        _set_environment(changed)


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def _run(arguments: list[str], cwd: str, environment: dict[str, str], printed: list[str]) -> None:
    set_start_method(None, force=True)  # the server's children would start theirs by a server too
    os.setsid()
    _set_environment(environment)
    os.chdir(cwd)
    for stream, path in enumerate(printed, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream)
        os.close(file)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()
