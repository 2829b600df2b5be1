"""Stops a run that cannot go on: ranks agree, the next whole optimiser step is saved, the process exits."""

from __future__ import annotations

import copy
import logging
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from inflate3d.remote.outcomes import Unreachable
from inflate3d.sample import Batch
from inflate3d.training.checkpoints.writer import CheckpointWriter, validation_follows
from inflate3d.training.run.loader import Fault, fault_ahead
from inflate3d.training.run.step_record import in_accumulation_window
from inflate3d.training.steering import stop_signals
from inflate3d.training.steering.stop_signals import RunStopped
from inflate3d.training.steering.wandb_service import mark_preempted, outlive_service, wandb_runs

log = logging.getLogger(__name__)


_SIGNAL, _FAULT = 1, 2  # why to stop; of two reasons the higher one


class StopOnSignal(Checkpoint):
    """Saves after the next optimiser step and ends the run, on all ranks, at a signal to, or a fault of, any of them.

    After SIGUSR1, SIGTERM or Ctrl-C all raise RunStopped. Where a rank's loader cannot go on (an outage past its
    budget), which it knows before that batch is due, the first rank raises the fault with what is saved, and the others
    RunStopped. A fault within the first steps of a start ends it as it began.

    A validation that was due is not waited for, and one under way is broken off: the run that goes on begins with it,
    so that metrics.csv and the best checkpoint are those of a run never stopped. By a signal the last step's validation
    is not broken off: after it the run is over. Being a `Checkpoint` it comes after all callbacks that train (EMA,
    records), and in the defaults just before the CheckpointWriter.
    """

    def __init__(self) -> None:
        super().__init__()
        self._agreement = Agreement()
        self._validation_is_due = False
        self._common_batches = 0
        self._val_progress: dict[str, Any] = {}
        self._handlers: dict[Any, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Whether the validation of this very step is still to be done."""
        return {"validation_is_due": self._validation_is_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` said."""
        self._validation_is_due = bool(state_dict["validation_is_due"])

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Keep Lightning's handlers out: on SIGTERM they broadcast inside the handler and stop within a window."""
        if stage != TrainerFn.FITTING:
            return
        trainer._signal_connector.register_signal_handlers = self._listen
        for run in wandb_runs(trainer):
            outlive_service(run)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """From here on a signal waits for a step; make up for a validation that the stop before did not wait for."""
        if self._agreement.lowest(-_FAULT if fault_ahead(trainer) else 0, pl_module.device) < 0:
            end_by_fault(trainer, fault_ahead(trainer), "nothing was trained since the start")
        stop_signals.set_training(True)
        if self._validation_is_due:
            self._validation_is_due = False
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False
            trainer.validating = True
            loop.run()
            trainer.training = True

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        """Ask the other ranks while the step is computed."""
        self._agreement.ask(_reason(trainer), pl_module.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """After an optimiser step: stop if any rank must."""
        reason = self._agreement.answer()
        if reason and not in_accumulation_window(trainer) and trainer.global_step != trainer.max_steps:
            self._stop(trainer, reason, validation_is_due=validation_follows(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where the loop stands, and how many batches every rank has: ranks can agree on these only."""
        if not self._watches_validation(trainer):
            return
        self._agreement.forget()
        self._val_progress = copy.deepcopy(trainer.fit_loop.epoch_loop.val_loop.batch_progress.state_dict())
        batches = -_FAULT if fault_ahead(trainer) else sum(trainer.num_val_batches)
        self._common_batches = self._agreement.lowest(batches, pl_module.device)
        if self._common_batches < 0:
            self._stop(trainer, _FAULT, validation_is_due=True)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Batch, batch_idx: int, *_: Any) -> None:
        """Ask the other ranks."""
        if self._watches_validation(trainer) and batch_idx < self._common_batches:
            self._agreement.ask(_reason(trainer), pl_module.device)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int, *_: Any
    ) -> None:
        """Break the validation off if any rank must."""
        if self._watches_validation(trainer) and batch_idx < self._common_batches and (r := self._agreement.answer()):
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.load_state_dict(self._val_progress)
            self._stop(trainer, r, validation_is_due=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """What was asked last is not answered any more."""
        self._agreement.forget()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """From here on a signal is what it was before: everything is saved."""
        stop_signals.set_training(False)
        stop_signals.restore(self._handlers)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """As at the end; a signal that comes after an error is not obeyed."""
        if not isinstance(exception, RunStopped):
            stop_signals.set_failed()
        stop_signals.set_training(False)
        stop_signals.restore(self._handlers)

    def _listen(self) -> None:
        self._handlers = stop_signals.listen()

    @staticmethod
    def _watches_validation(trainer: Any) -> bool:
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        return fitting and not in_accumulation_window(trainer)

    def _stop(self, trainer: Any, reason: int, *, validation_is_due: bool) -> None:
        self._validation_is_due = validation_is_due
        for writer in [c for c in trainer.callbacks if isinstance(c, CheckpointWriter)][:1]:
            writer.save(trainer)
        if reason == _FAULT:
            is_last = trainer.global_step == trainer.max_steps
            missing = ", but for its validation (platform validate)" if is_last else ""
            end_by_fault(
                trainer, fault_ahead(trainer), f"step {trainer.global_step} of {trainer.max_steps} is saved{missing}"
            )
        stop = RunStopped(trainer.global_rank)
        if trainer.is_global_zero:
            received = stop_signals.received()
            log.info(
                "stopped by %s after step %d of %d, which is saved; the same command goes on from there (exit code %d)",
                received.name if received else "a signal on another rank",
                trainer.global_step,
                trainer.max_steps,
                stop.code,
            )
            for run in wandb_runs(trainer):
                mark_preempted(run)
        raise stop


def end_by_fault(trainer: Any, fault: Fault | None, state: str) -> NoReturn:
    """End the run on all ranks, called by all of them: the first raises the fault, or that another rank has one."""
    if not trainer.is_global_zero:
        if fault is not None:
            log.warning("rank %d: %s", trainer.global_rank, fault)
        raise RunStopped(trainer.global_rank)
    kind = Unreachable if fault is None else type(fault)
    told = fault or "another rank cannot read its data, as it says itself. Run the same again to go on from there"
    raise kind(f"{told}. Now {state}") from fault


def _reason(trainer: Any) -> int:
    if fault_ahead(trainer) is not None:
        return _FAULT
    return _SIGNAL if stop_signals.received() is not None and trainer.global_step != trainer.max_steps else 0


class Agreement:
    """A reason (0: none) on which all ranks agree, without waiting for a GPU: asked early, answered a batch later.

    `ask` adds a one-number all-reduce to the stream and a copy to pinned memory behind it; `answer` waits for the one
    before the latest only (on the CPU: for the latest). Every rank must make the same calls.
    """

    def __init__(self) -> None:
        self._asked: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []

    def ask(self, reason: int, device: torch.device) -> None:
        """Tell the other ranks why this one must stop, if it must."""
        flag = torch.full((), float(reason), device=device)
        if _is_distributed():
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if device.type != "cuda":
            self._asked = [(flag, None)]
            return
        copied = torch.empty((), pin_memory=True)
        copied.copy_(flag, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._asked = [*self._asked[-1:], (copied, event)]

    def answer(self) -> int:
        """Return the highest reason of any rank."""
        if not self._asked or (self._asked[-1][1] is not None and len(self._asked) < 2):
            return 0
        flag, event = self._asked[0]
        if event is not None:
            event.synchronize()
        return int(flag)

    def forget(self) -> None:
        """Start anew."""
        self._asked = []

    @staticmethod
    def lowest(value: float, device: torch.device) -> int:
        """Return the lowest of all ranks' numbers."""
        number = torch.tensor(float(value), device=device)
        if _is_distributed():
            dist.all_reduce(number, op=dist.ReduceOp.MIN)
        return int(number)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
