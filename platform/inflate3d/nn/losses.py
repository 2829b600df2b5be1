"""Losses of the tasks, in float32 whatever the precision of the logits."""

# B batch, K classes, D H W voxels.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def cross_entropy_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of (B, K, ...) logits against (B, ...) class indices; -1 (not known) is left out.

    0 where nothing is known.
    """
    is_some_known = (target >= 0).any()
    # Where none is, their mean and its gradient would not be numbers: class 0 stands in, and counts nothing.
    target = torch.where(is_some_known, target, 0)
    loss = F.cross_entropy(logits.float(), target, ignore_index=-1, label_smoothing=label_smoothing)
    return loss * is_some_known


def known_mean(loss: Tensor, value: Tensor) -> Tensor:
    """Return the mean of a loss over where its values are known (not NaN), 0 where none is; shapes are equal.

    `loss` may hold anything, but no NaN gradient, elsewhere: reckon it on value.nan_to_num().
    """
    known = ~value.isnan()
    return (loss * known).sum() / known.sum().clamp_min(1)


def merge_unannotated(logits: Tensor, target: Tensor, unannotated: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return logits and target of the classes that were looked for; what was not counts as background (index 0).

    The background's probability becomes p(background) + sum of p(unannotated); the others keep theirs and their order.
    So any loss of the result is the marginal loss of Shi et al. (arXiv:2007.03868), and of Fang and Yan
    (arXiv:2001.00208), who call it target adaptive.
    Shapes: logits (B, K, ...) -> (B, K - len(unannotated), ...), target (B, ...), -1 where it is not known. Nothing
    changes where all were looked for.
    """
    if not unannotated:
        return logits, target
    kept = [k for k in range(1, logits.shape[1]) if k not in unannotated]
    logits = logits.float()
    background = logits[:, [0, *unannotated]].logsumexp(dim=1, keepdim=True)
    place = torch.zeros(logits.shape[1] + 1, dtype=target.dtype, device=target.device)
    place[-1] = -1  # what is not known stays so: index -1 is the last
    place[kept] = torch.arange(1, len(kept) + 1, dtype=target.dtype, device=target.device)
    return torch.cat([background, logits[:, kept]], dim=1), place[target]


def soft_dice_loss(logits: Tensor, target: Tensor, *, smooth: float = 1e-5, are_all_known: bool = True) -> Tensor:
    """Return 1 - soft Dice, the mean over the foreground classes (index 0 is the background).

    Shapes: logits (B, K, D, H, W), target (B, D, H, W) int64 -> scalar. are_all_known: no voxel of the target is -1;
    otherwise those are left out.
    """
    num_classes = logits.shape[1]
    probabilities = logits.float().softmax(dim=1)[:, 1:]
    classes = torch.arange(1, num_classes, device=target.device).view(1, -1, *[1] * (target.ndim - 1))
    known = None if are_all_known else (target >= 0)[:, None]
    return _dice_loss(probabilities, target[:, None] == classes, known, smooth)


def region_loss(logits: Tensor, inside: Tensor, *, smooth: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and 1 - soft Dice of regions, each the mean over all of them.

    Shapes: logits and inside (B, R, D, H, W); inside is 1, 0, or NaN where a voxel is left out of both.
    """
    truth, known = inside.nan_to_num(), ~inside.isnan()
    each = F.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return known_mean(each, inside), _dice_loss(logits.float().sigmoid(), truth, known, smooth)


def _dice_loss(probabilities: Tensor, truth: Tensor, known: Tensor | None, smooth: float) -> Tensor:
    """Return 1 - soft Dice of (B, K, ...) probabilities against 0 and 1, the mean over K, of known voxels.

    Dice = (2 sum(p t) + s) / (sum(p) + sum(t) + s) with sums over the batch and all voxels, so that a class which one
    patch lacks does not weigh as a whole error (nnU-Net's "batch dice", arXiv:1809.10486). The batch is that of all
    ranks together, so that the loss does not depend on their number: in a process group all ranks must call this.
    """
    if known is not None:
        probabilities, truth = probabilities * known, truth * known
    over = [0, *range(2, probabilities.ndim)]
    overlap = _sum_over_ranks((probabilities * truth).sum(over))
    total = _sum_over_ranks(probabilities.sum(over) + truth.sum(over))
    return 1 - ((2 * overlap + smooth) / (total + smooth)).mean()


class _SumOverRanks(torch.autograd.Function):
    """All-reduce whose gradient is all-reduced too: averaged over ranks, gradients are those of the whole batch."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total: Tensor = _SumOverRanks.apply(gradient)  # type: ignore[no-untyped-call]
        return total  # by the Function itself, so that a gradient of it is summed over ranks too


def _sum_over_ranks(value: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    total: Tensor = _SumOverRanks.apply(value)  # type: ignore[no-untyped-call]
    return total
