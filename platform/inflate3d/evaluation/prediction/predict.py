"""Prediction on raw files, by the code that validation uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from inflate3d.contracts import DatasetCard
from inflate3d.data.samples.stages import make_stage
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.prediction.answerers import answerer_of
from inflate3d.evaluation.prediction.answers import LabelMaps, answers_to
from inflate3d.evaluation.prediction.inputs import FAMILY_OF, Family, families, find_cases, read_case
from inflate3d.sample import Batch, Sample

_HALF = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


class Predictor:
    """One head of a run or of published weights, ready to answer for the files of a path; needs no shards."""

    def __init__(
        self,
        model: str | Path,
        source: str | Path,
        *,
        dataset: str | None = None,
        checkpoint: str = "best",
        device: str | None = None,
        features: bool = False,
        cache_dir: str | None = None,
    ) -> None:
        """Load the weights and list the cases of `source`.

        model: a run folder, or any published name that create_model takes. dataset: whose head answers; None: the only
        one that takes what `source` holds. checkpoint: of a run: "best" ("last" where none carries a score), "last" or
        a path. device: None is the GPU where there is one. features: pooled features in place of the head's answer.
        Raises InputError for whatever is missing or does not fit.
        """
        self.source, self.features = Path(source), features
        held = families(self.source)
        self.answerer = answerer_of(str(model), checkpoint=checkpoint, cache_dir=cache_dir)
        self.dataset = choose_dataset(self.answerer.cards, held, dataset)
        self.card = self.answerer.cards[self.dataset]
        self.cases = find_cases(self.source, self.card)
        options = self.answerer.sample(self.dataset)
        self.stage = make_stage(self.card, options, training=False, where=f"data.datasets.{self.dataset}")
        self.device = choose_device(device)
        self.answerer.prepare(self.dataset, self.device, features=features)

    def write(
        self,
        output: str | Path,
        watch: Callable[[int, int], None] = lambda done, total: None,
        *,
        labels: str | Path | None = None,
    ) -> tuple[Path, str]:
        """Predict every case and write the answers; return the file or folder that holds them, and what they score.

        watch: told after each case how many of how many are done. labels: true label maps, a folder or one file, which
        give dice.csv; without them the score is "". InputError lists unreadable cases, after the others.
        """
        truth = Path(labels) if labels is not None else None
        answers, place = answers_to(Path(output), self.card, self.cases, features=self.features, labels=truth)
        faults: dict[str, str] = {}
        watch(0, len(self.cases))
        for done, case in enumerate(self.cases, start=1):
            try:
                members = read_case(case, self.card)
                sample = self.stage(case.key, members, 0)
                answers.add(case, sample, members["json"]["affine"], self._answer(sample))
            except InputError as fault:
                faults[case.key] = " ".join(str(fault).split())
            watch(done, len(self.cases))
        answers.close()
        if faults:
            raise _unreadable(faults, len(self.cases), place)
        return place, str(answers.scores) if isinstance(answers, LabelMaps) and answers.scores else ""

    @torch.no_grad()
    def _answer(self, sample: Sample) -> torch.Tensor:
        """Return (K,), (K, D, H, W) or features (F,) for one sample, as validation would see it."""
        batch = Batch(
            image=sample.image[None],
            target=torch.as_tensor(sample.target)[None],
            keys=[sample.key],
            dataset=self.dataset,
            task="",
            spacing_mm=torch.tensor([sample.spacing_mm]),
        )
        with mixed_precision(self.answerer.precision, self.device):
            return self.answerer.answer(batch.to(self.device))[0].float()


def choose_dataset(cards: Mapping[str, DatasetCard], held: set[Family], dataset: str | None) -> str:
    """Return whose head answers for what the input holds. InputError if none does, or several do and none is named."""
    if dataset is not None and dataset not in cards:
        raise unknown_name("dataset", dataset, cards, where="--dataset")
    what = " and ".join(f"{family}s" for family in sorted(held))
    fitting = [name for name, card in cards.items() if FAMILY_OF[card.kind] in held]
    listed = ", ".join(f"{name} ({cards[name].kind})" for name in fitting or cards)
    if dataset is not None:
        if dataset not in fitting:
            raise InputError(f"--dataset: {dataset!r} is of kind {cards[dataset].kind!r}, but --input holds {what}")
        return dataset
    if not fitting:
        raise InputError(f"--input holds {what}; no dataset of this model takes them. Its datasets: {listed}")
    if len(fitting) > 1:
        raise InputError(f"--input holds {what}; which head is to answer? Name one by --dataset: {listed}")
    return fitting[0]


def choose_device(name: str | None) -> torch.device:
    """Return the named device, or the GPU where there is one; InputError if it cannot be used."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as fault:
        raise InputError(f"--device: {name!r} cannot be used: {str(fault).splitlines()[0]}") from fault
    return device


def mixed_precision(precision: str, device: torch.device) -> Any:
    """Return the context in which Lightning validates under trainer.precision; on the CPU 16-mixed is bf16-mixed."""
    if (dtype := _HALF.get(precision)) is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16 if device.type == "cpu" else dtype)


def _unreadable(faults: Mapping[str, str], total: int, place: Path) -> InputError:
    others = f"; the other {total - len(faults)} are in {place}" if total > len(faults) else ""
    lines = [f"{len(faults)} of {total} cases could not be read{others}"]
    return InputError("\n".join([*lines, *(f"{key}: {reason}" for key, reason in faults.items())]))
