"""Bootstrap intervals over seeds and test samples, and paired tests between arms over the same draws."""

# S seeds, N test samples, R resamples, K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from inflate3d.seeds import generator

RESAMPLES = 2000
_LEVEL = 95.0
_CLOSE = 1e-3  # the cells' numbers are rounded to 5 digits


class Score(Protocol):
    """One arm's score, to be taken over resampled seeds and samples."""

    def __call__(self, seeds_RS: np.ndarray, samples_RN: np.ndarray) -> np.ndarray:
        """Return (R,) scores, given how often each seed and each sample was drawn."""


class MeanScore:
    """The mean over samples, then over seeds: values (S, N), NaN where a sample has none."""

    def __init__(self, values_SN: np.ndarray) -> None:
        self.is_known = np.isfinite(values_SN)
        self.values = np.where(self.is_known, values_SN, 0.0)

    def __call__(self, seeds_RS: np.ndarray, samples_RN: np.ndarray) -> np.ndarray:
        """Return the seeds' mean of each seed's mean."""
        per_seed = (samples_RN @ self.values.T) / np.maximum(samples_RN @ self.is_known.T, 1e-12)
        return (per_seed * seeds_RS).sum(1) / seeds_RS.sum(1)


class AreaScore:
    """The area under the ROC curve, one class against the rest, the mean over classes that occur, then over seeds."""

    def __init__(self, probabilities_SNK: np.ndarray, target_N: np.ndarray) -> None:
        self.classes = [int(k) for k in np.unique(target_N)]
        self.is_class = [target_N == k for k in self.classes]
        self.wins = [
            [_wins(seed[self.is_class[i], k], seed[~self.is_class[i], k]) for i, k in enumerate(self.classes)]
            for seed in probabilities_SNK
        ]

    def __call__(self, seeds_RS: np.ndarray, samples_RN: np.ndarray) -> np.ndarray:
        """Return the seeds' mean of each seed's area; a class that a draw lacks is left out there."""
        per_seed = []
        for wins in self.wins:
            areas = []
            for own, won in zip(self.is_class, wins, strict=True):
                yes, no = samples_RN[:, own], samples_RN[:, ~own]
                pairs = yes.sum(1) * no.sum(1)
                areas.append(np.where(pairs > 0, ((yes @ won) * no).sum(1) / np.maximum(pairs, 1), np.nan))
            known = np.isfinite(areas).sum(0)  # a draw of one class alone has no area
            per_seed.append(np.where(known > 0, np.nansum(areas, axis=0) / np.maximum(known, 1), np.nan))
        return (np.stack(per_seed, 1) * seeds_RS).sum(1) / seeds_RS.sum(1)


def _wins(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    return (yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """An arm's score minus another's over the same draws; p: two-sided, not corrected for the number of tests."""

    value: float
    low: float
    high: float
    p: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return asdict(self)


class Bootstrap:
    """Draws of seeds and samples, made once, so that all arms are scored on the same ones."""

    def __init__(self, num_seeds: int, num_samples: int, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        draw = generator(seed, "bootstrap", num_seeds, num_samples)
        self.seeds_RS = draw.multinomial(num_seeds, [1 / num_seeds] * num_seeds, resamples).astype(float)
        self.samples_RN = draw.multinomial(num_samples, [1 / num_samples] * num_samples, resamples).astype(float)
        self._once = np.ones((1, num_seeds)), np.ones((1, num_samples))

    def interval(self, score: Score) -> Interval:
        """Return a score and its interval: seeds and samples are both resampled."""
        low, high = _bounds(score(self.seeds_RS, self.samples_RN))
        return Interval(float(score(*self._once)[0]), low, high)

    def difference(self, score: Score, other: Score) -> Difference:
        """Return score - other, paired: both are taken over the same seeds and the same samples."""
        drawn = score(self.seeds_RS, self.samples_RN) - other(self.seeds_RS, self.samples_RN)
        low, high = _bounds(drawn)
        tail = min((drawn <= 0).mean(), (drawn >= 0).mean())
        p = min(1.0, max(2 * tail, 1 / len(drawn)))  # a bootstrap cannot give p below 1 / draws
        return Difference(float(score(*self._once)[0] - other(*self._once)[0]), low, high, float(p))


class MeanOfScores:
    """The mean of several scores: a metric that averages its parts, such as Dice over classes."""

    def __init__(self, parts: Sequence[Score]) -> None:
        self.parts = list(parts)

    def __call__(self, seeds_RS: np.ndarray, samples_RN: np.ndarray) -> np.ndarray:
        """Return the mean of the parts' scores."""
        return np.mean([part(seeds_RS, samples_RN) for part in self.parts], axis=0)


def score_of(metric: str, records: Sequence[dict[str, Any]]) -> Score | None:
    """Return the score of an arm's finished cells, one a seed; None for a metric without such a form.

    records: the "test" entries of cells, all on the same samples. The forms tried: the mean over samples, the mean of
    the metric's parts (dice of dice_<class>), the area under the curve; one counts if it gives the metric's own value.
    """
    per_sample = records[0]["per_sample"]
    parts = [name for name in per_sample if name.startswith(f"{metric}_")]
    forms: list[Score] = [MeanScore(_values(records, metric))]
    if parts:
        forms.append(MeanOfScores([MeanScore(_values(records, part)) for part in parts]))
    if metric == "auroc" and "target" in records[0]:
        forms.append(AreaScore(np.array([r["probabilities"] for r in records]), np.array(records[0]["target"])))
    totals = [r["total"][metric] for r in records]
    if any(total is None for total in totals):
        return None
    once = np.ones((1, len(records))), np.ones((1, len(records[0]["keys"])))
    return next((form for form in forms if abs(form(*once)[0] - np.mean(totals)) < _CLOSE), None)


def _values(records: Sequence[dict[str, Any]], metric: str) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in r["per_sample"][metric]] for r in records], float)


def _bounds(drawn: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(drawn, [(100 - _LEVEL) / 2, (100 + _LEVEL) / 2])
    return float(low), float(high)
