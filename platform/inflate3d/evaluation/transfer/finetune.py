"""Fine-tuning in a plain loop: the project's streams, tasks, losses and metrics, without a trainer around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from inflate3d.contracts import Split
from inflate3d.evaluation.transfer.arms import Arm
from inflate3d.evaluation.transfer.build import build_module
from inflate3d.evaluation.transfer.held_out import AnswerBook, Answers
from inflate3d.evaluation.transfer.holdout import Listed
from inflate3d.evaluation.transfer.target import Target
from inflate3d.seeds import mix
from inflate3d.training.module import MultiTaskModule
from inflate3d.training.optim import fuse, parameter_groups, warmup_cosine
from inflate3d.training.step_encoder import StepEncoder

_CLIP_NORM = 1.0


def fine_tune(
    arm: Arm,
    target: Target,
    samples: Sequence[Listed],
    *,
    learning_rate: float,
    steps: int,
    seed: int,
    device: str = "cpu",
) -> MultiTaskModule:
    """Train a fresh copy of an arm for `steps` optimiser steps; everything random follows from the seed.

    AdamW, gradients clipped at a norm of 1, a tenth of the steps of warm-up and a half cosine to 0. A gradient that is
    not finite skips the step.
    """
    module = build_module(arm, target, seed=seed, device=device)
    task = module.tasks[target.protocol.task]
    groups = parameter_groups(module, no_weight_decay=module._no_weight_decay())
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=target.protocol.weight_decay)
    if device == "cpu":
        fuse(optimiser)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warmup_cosine(warmup_steps=steps // 10, max_steps=steps))
    module.train()
    batches = target.train_batches(samples, seed=seed)
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            torch.manual_seed(mix(seed, "step", step))
            batch = next(batches).to(device)
            loss = task.step(StepEncoder(module.backbone), batch, seed=mix(seed, "task", step))["loss"]
            optimiser.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), _CLIP_NORM)
            if math.isfinite(float(norm)):
                optimiser.step()
            schedule.step()
    return module.eval()


@torch.no_grad()
def answer(module: MultiTaskModule, target: Target, samples: Sequence[Listed], split: Split) -> Answers:
    """Return a module's predictions on these samples; volumes are segmented whole, by sliding windows."""
    module.eval()
    book = AnswerBook(target)
    for batch in target.batches(samples, split):
        answers = module.predict(batch.to(module.device)).tensor.cpu()
        book.add(batch.keys, answers, target.value(batch))
    return book.close()
