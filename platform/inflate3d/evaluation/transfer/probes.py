"""What frozen features contain: a linear probe and nearest neighbours, their setting chosen on held-out samples."""

# N samples, F features, K classes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from inflate3d.evaluation.transfer.protocol import Mode
from inflate3d.nn import cross_entropy_loss

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of equal scores the strongest is chosen
NEIGHBOURS = (1, 5, 10, 20, 50)
_TEMPERATURE = 0.07
_STEPS = 100

Predict = Callable[[Tensor], Tensor]


def linear_probe(features_NF: Tensor, target_N: Tensor, num_classes: int, *, penalty: float) -> Predict:
    """Fit a softmax regression with an L2 penalty (L-BFGS, convex: no seed, no learning rate); return (n, F) -> (n, K).

    Features are standardised on the training samples; features constant there are left out.
    """
    standardise = _standardiser(features_NF)
    x = standardise(features_NF)
    weight = torch.zeros(num_classes, x.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = cross_entropy_loss(F.linear(x, weight, bias), target_N) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    weight_KF, bias_K = weight.detach(), bias.detach()
    return lambda f: F.linear(standardise(f), weight_KF, bias_K).softmax(dim=1)


def nearest_neighbours(features_NF: Tensor, target_N: Tensor, num_classes: int, *, neighbours: int) -> Predict:
    """Vote among the nearest training samples by cosine, weighted by exp(similarity / 0.07) (arXiv:1805.01978)."""
    standardise = _standardiser(features_NF)
    known = F.normalize(standardise(features_NF), dim=1)
    votes_NK = F.one_hot(target_N, num_classes).float()
    count = min(neighbours, len(known))

    def predict(f: Tensor) -> Tensor:
        nearest = (F.normalize(standardise(f), dim=1) @ known.T).topk(count, dim=1)
        weight = ((nearest.values - 1) / _TEMPERATURE).exp()
        votes = (weight[:, :, None] * votes_NK[nearest.indices]).sum(dim=1)
        return votes / votes.sum(dim=1, keepdim=True).clamp_min(1e-30)

    return predict


def grid(mode: Mode) -> Sequence[float]:
    """Return the settings that a frozen mode chooses from."""
    return PENALTIES if mode == "probe" else NEIGHBOURS


def fit(mode: Mode, features_NF: Tensor, target_N: Tensor, num_classes: int, *, setting: float) -> Predict:
    """Fit a frozen mode at one setting of its grid."""
    if mode == "probe":
        return linear_probe(features_NF, target_N, num_classes, penalty=setting)
    return nearest_neighbours(features_NF, target_N, num_classes, neighbours=int(setting))


def best(scores: Mapping[float, float]) -> float:
    """Return the setting with the highest score; of equal ones the first."""
    return max(scores, key=lambda setting: (scores[setting] == scores[setting], scores[setting]))


def _standardiser(features_NF: Tensor) -> Callable[[Tensor], Tensor]:
    mean, std = features_NF.mean(dim=0), features_NF.std(dim=0, correction=0)
    is_alive = std > 1e-6 * std.max().clamp_min(1e-12)
    scale = torch.where(is_alive, 1 / std.clamp_min(1e-30), 0.0)
    return lambda f: (f - mean) * scale
