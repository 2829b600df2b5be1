"""SIGUSR1, SIGTERM and Ctrl-C as a flag: nothing is saved or torn down inside a signal handler.

SLURM sends SIGUSR1 some minutes before the time limit (`--signal`), and SIGTERM when it preempts a job; containers and
other schedulers send SIGTERM. Before training there is nothing to save, so the process ends at once; during training
StopOnSignal asks for the flag. Either way the exit code is 75 (EX_TEMPFAIL of sysexits.h): start me again, I go on.
Ctrl-C (SIGINT) is a person's: it saves as well, the code is 130, and the second one ends the process at once.
No torch is imported here: the command listens before it loads anything heavy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130
_TOLD = b"Ctrl-C: the run is saved after this step; once more ends it at once, without saving\n"


class RunStopped(SystemExit):
    """The run has stopped as it was asked to, and can go on: ends the process, with 75 in the first rank (130 after
    Ctrl-C), else 0.

    Launchers kill every rank when one fails, and the first may still be closing its loggers. For a script that starts
    several ranks and sees one exit code, the first rank also makes the file that INFLATE3D_STOPPED_FILE names; no other
    does, since srun sends SIGTERM to the rest where one rank fails.
    """

    def __init__(self, rank: int = 0) -> None:
        code = EXIT_INTERRUPTED if _State.received is signal.SIGINT else EXIT_STOPPED
        super().__init__(0 if rank else code)
        if not rank and code == EXIT_STOPPED and (file := os.environ.get("INFLATE3D_STOPPED_FILE")):
            with contextlib.suppress(OSError):
                open(file, "a").close()


class _State:
    received: signal.Signals | None = None
    training = False
    failed = False


def listen() -> dict[signal.Signals, Any]:
    """Let these signals set the flag from now on; return the handlers before, for `restore`.

    Only a main thread can: elsewhere nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    _State.failed = False
    return {signum: signal.signal(signum, _note) for signum in SIGNALS}


def restore(handlers: Mapping[signal.Signals, Any]) -> None:
    """Put back the handlers that `listen` found."""
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def received() -> signal.Signals | None:
    """Return the signal that came first, or None."""
    return _State.received


def set_training(training: bool) -> None:
    """Say whether a signal waits for the next optimiser step (True) or ends the process at once (False)."""
    _State.training = training
    if not training:
        _State.received = None


def set_failed() -> None:
    """Let signals pass from now on: the process ends of an error, and srun sends SIGTERM to what is still there then.

    A run that failed must not look like one that was asked to stop, which is started again.
    """
    _State.failed = True


def shield_worker() -> None:
    """In a loading process: ignore SIGUSR1 and Ctrl-C, and SIGTERM unless the parent sends it, who ends workers so.

    torch's own handler lets a worker die of any other SIGTERM, and the trainer with it, before anything is saved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    parent = os.getppid()

    def wait() -> None:
        while True:
            info = signal.sigwaitinfo(SIGNALS)
            if info.si_signo == signal.SIGTERM and info.si_pid in (parent, os.getpid()):
                os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def _note(signum: int, frame: FrameType | None) -> None:
    if signum == signal.SIGINT:
        if not _State.training or _State.received is signal.SIGINT:
            raise KeyboardInterrupt
        os.write(2, _TOLD)  # print is not reentrant
    if _State.received is None:
        _State.received = signal.Signals(signum)
    if not _State.training and not _State.failed:
        raise RunStopped(max(int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "SLURM_PROCID")))
