"""W&B when a run is told to stop: its service may die of the same signal, and must not take the run with it.

SLURM signals every process of a preempted job step, and `wandb-core` (0.31) ends at a SIGTERM whatever its mask, with
the rows that it has not written. Scripts of `platform submit` therefore start it outside of the step; elsewhere these
rows are lost to W&B, never to metrics.csv.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from inflate3d.training.steering import stop_signals

log = logging.getLogger(__name__)


def wandb_runs(trainer: Any) -> list[Any]:
    """Return the W&B runs among a trainer's loggers; in the first process only."""
    if not trainer.is_global_zero:
        return []
    runs = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [run for run in runs if hasattr(run, "mark_preempting")]


def outlive_service(run: Any) -> None:
    """Let `run.log` warn, once, instead of raising when the service is gone after a signal; before one it raises."""
    log_row = run.log
    warned: list[OSError] = []

    def log_or_warn(*args: Any, **kwargs: Any) -> None:
        try:
            log_row(*args, **kwargs)
        except OSError as error:
            if stop_signals.received() is None:
                raise
            if not warned:
                warned.append(error)
                log.warning("W&B's service is gone (%s): its last rows stand in metrics.csv only", error)

    run.log = log_or_warn


def mark_preempted(run: Any) -> None:
    """Tell W&B that the run was preempted and has not failed, and write what is left."""
    with contextlib.suppress(Exception):  # a logger must not keep a saved run from going on
        run.mark_preempting()
        run.finish(exit_code=stop_signals.EXIT_STOPPED)
