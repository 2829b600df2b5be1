"""Prediction on raw files, by the code that validation uses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inflate3d.contracts import Features, Prediction
from inflate3d.data.samples.views import make_stage
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.prediction.answerers import Answering, answerer_of
from inflate3d.evaluation.prediction.answers import Answered, Answers, answers_to
from inflate3d.evaluation.prediction.inputs import InputCase, find_cases, media_in, read_case
from inflate3d.sample import Batch, Sample

_LABELS = {True: "a folder of label maps, or one", False: "a CSV with the columns key and label"}  # by per_voxel
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
        labels: str | Path | None = None,
    ) -> None:
        """Load the weights and list the cases of `source`.

        model: a run folder, or any published name that create_model takes. dataset: which head answers, by its
        dataset's name, or <dataset>-<task> where that has several; None: the only one that takes what `source` holds
        and gives what `labels` hold, label maps or a table. checkpoint: of a run: "best" ("last" where none carries a
        score), "last" or a path. device: None is the GPU where there is one. features: pooled features in place of the
        head's answer. labels: label maps, a folder or one file, or a CSV, which score the answers.
        Raises InputError for whatever is missing or does not fit.
        """
        self.source, self.features = Path(source), features
        self.labels = None if labels is None else Path(labels)
        held = media_in(self.source)
        self.answerer = answerer_of(str(model), checkpoint=checkpoint, cache_dir=cache_dir)
        self.name = choose_head(self.answerer.heads, held, dataset, labels=self.labels)
        self.head = self.answerer.heads[self.name]
        self.cases = find_cases(self.source, self.head.card)
        options = self.answerer.sample(self.name)
        unlabelled = replace(self.head.card, targets={})
        self.stage = make_stage(unlabelled, options, training=False, where=f"data.datasets.{self.head.dataset}")
        self.device = choose_device(device)
        self.answerer.prepare(self.name, self.device, features=features)

    def write(
        self,
        output: str | Path,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Path, str]:
        """Predict every case and write the answers; return the file or folder that holds them, and what they score.

        watch: told after each case how many of how many are done. Labels give dice.csv, or scores.csv; without them the
        score is "". InputError lists unreadable cases, after the others.
        """
        truth = self._truth()
        answers: Answers | None = None
        faults: dict[str, str] = {}
        watch(0, len(self.cases))
        for done, case in enumerate(self.cases, start=1):
            try:
                members, sample = self._read(case)
            except InputError as fault:
                faults[case.key] = " ".join(str(fault).split())
            else:
                answer = self._answer(sample)
                answers = answers or self._answers(Path(output), answer, truth)
                try:
                    answers.add(Answered(case, members, sample, answer.tensor[0].float()))
                except InputError as fault:
                    faults[case.key] = " ".join(str(fault).split())
            watch(done, len(self.cases))
        told = "" if answers is None else answers.close()
        place = Path(output) if answers is None else answers.place
        if faults:
            raise _unreadable(faults, len(self.cases), place)
        return place, told

    def _answers(self, output: Path, answer: Prediction | Features, labels: Path | None) -> Answers:
        names = self.head.label_names
        return answers_to(output, answer, self.head.target, self.cases, labels=labels, label_names=names)

    def _truth(self) -> Path | None:
        if self.labels is None:
            return None
        target = None if self.features else self.head.target
        if target is None or target.per_voxel is _is_table(self.labels):
            gives = "features" if target is None else target.describe()
            wanted = "features have none" if target is None else f"give {_LABELS[target.per_voxel]}"
            raise InputError(f"--labels: {self.name!r} gives {gives}, and {self.labels} does not say that: {wanted}")
        return self.labels

    def _read(self, case: InputCase) -> tuple[dict[str, Any], Sample]:
        members, _ = read_case(case, self.head.card)
        return members, self.stage(case.key, members, 0)

    @torch.no_grad()
    def _answer(self, sample: Sample) -> Prediction | Features:
        """Return the answer for one sample, as validation would see it."""
        views = {name: view[None] for name, view in sample.views.items()}
        batch = Batch(views, {}, [sample.key], self.head.dataset, torch.tensor([sample.spacing_mm]))
        with mixed_precision(self.answerer.precision, self.device):
            return self.answerer.answer(batch.to(self.device))


def _is_table(labels: Path) -> bool:
    return labels.suffix.lower() in (".csv", ".tsv", ".txt")


def choose_head(heads: Mapping[str, Answering], held: set[str], name: str | None, *, labels: Path | None = None) -> str:
    """Return which head answers for what the input holds, and gives what the labels hold: maps, or a table.

    InputError if none does, or several do and none is named.
    """
    if name is not None and name not in heads:
        raise unknown_name("dataset", name, heads, where="--dataset")
    what = " and ".join(f"{media}s" for media in sorted(held))
    fitting = [name for name, head in heads.items() if head.card.media in held]
    listed = ", ".join(f"{name} ({describe(heads[name])})" for name in fitting or heads)
    if name is not None:
        if name not in fitting:
            raise InputError(f"--dataset: {name!r} takes {heads[name].card.media}s, but --input holds {what}")
        return name
    if not fitting:
        raise InputError(f"--input holds {what}; no dataset of this model takes them. Its datasets: {listed}")
    if labels is not None and len(fitting) > 1:
        told = [n for n in fitting if (t := heads[n].target) is not None and t.per_voxel is not _is_table(labels)]
        fitting = told or fitting
    if len(fitting) > 1:
        raise InputError(f"--input holds {what}; which head is to answer? Name one by --dataset: {listed}")
    return fitting[0]


def describe(head: Answering) -> str:
    """Return a few words: the medium, and what is answered."""
    return f"{head.card.media}, {'features' if head.target is None else head.target.describe()[:120]}"


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
