"""Prediction on raw files, by the code that validation uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inflate3d.contracts import Features, Prediction
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.prediction.answerers import Answering, answerer_of
from inflate3d.evaluation.prediction.answers import PLAIN, Answered, Answers, MapOptions, answers_to
from inflate3d.evaluation.prediction.dicom_seg import check_dicom_inputs
from inflate3d.evaluation.prediction.inputs import find_cases, media_in, read_case
from inflate3d.evaluation.prediction.member import Member, check_together, mean_of, mirror_axes

_LABELS = {True: "a folder of label maps, or one", False: "a CSV with the columns key and label"}  # by per_voxel


class Predictor:
    """One head of a run or of published weights, or the mean of several, ready to answer for the files of a path."""

    def __init__(
        self,
        model: str | Path,
        source: str | Path,
        *,
        others: Sequence[str | Path] = (),
        dataset: str | None = None,
        checkpoint: str = "best",
        device: str | None = None,
        features: bool = False,
        cache_dir: str | None = None,
        labels: str | Path | None = None,
        mirror: str | None = None,
        maps: MapOptions = PLAIN,
    ) -> None:
        """Load the weights and list the cases of `source`; needs no shards.

        model: a run folder, or any published name that create_model takes. others: more of them, whose answers are
        averaged with its; heads must tell the same labels and read alike. dataset: which head answers, by its
        dataset's name, or <dataset>-<task> where that has several; None: the only one that takes what `source` holds
        and gives what `labels` hold, label maps or a table. checkpoint: of a run: "best" ("last" where none carries a
        score), "last" or a path. device: None is the GPU where there is one. features: pooled features in place of the
        head's answer. labels: label maps, a folder or one file, or a CSV, which score the answers. mirror: axes, of D,
        H and W, along which all mirror images are answered too and averaged ("": all of the medium's; None: none).
        maps: what is done with label maps besides. Raises InputError for whatever is missing or does not fit.
        """
        self.source, self.features = Path(source), features
        self.labels = None if labels is None else Path(labels)
        held = media_in(self.source)
        answerers = [answerer_of(str(m), checkpoint=checkpoint, cache_dir=cache_dir) for m in (model, *others)]
        names = [choose_head(answerer.heads, held, dataset, labels=self.labels) for answerer in answerers]
        self.head = answerers[0].heads[names[0]]
        self.target = None if features else self.head.target
        self.axes = "" if mirror is None else mirror_axes(mirror, self.head.card, self.target)
        self.maps = maps.checked(self.target)
        chosen = list(zip(answerers, names, strict=True))
        check_together([a.heads[name] for a, name in chosen], [a.title for a in answerers], features=features)
        self.cases = find_cases(self.source, self.head.card)
        if maps.dicom_seg:
            check_dicom_inputs([case.files[0] for case in self.cases])
        self.device = choose_device(device)
        self.members = [Member(a, name, self.device, features=features) for a, name in chosen]

    def write(
        self,
        output: str | Path,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[Path, str]:
        """Predict every case and write the answers; return the file or folder that holds them, and what they score.

        watch: told after each case how many of how many are done. Labels give dice.csv, or scores.csv; without them the
        score is "". The log warns of a case that is far outside of what the weights saw. InputError lists unreadable
        cases, after the others.
        """
        truth = self._truth()
        answers: Answers | None = None
        faults: dict[str, str] = {}
        watch(0, len(self.cases))
        for done, case in enumerate(self.cases, start=1):
            try:
                members, _ = read_case(case, self.head.card)
                answer = self._answer(case.key, members)
            except InputError as fault:
                faults[case.key] = " ".join(str(fault).split())
            else:
                answers = answers or self._answers(Path(output), answer, truth)
                try:
                    answers.add(Answered(case, members, answer.tensor[0]))
                except InputError as fault:
                    faults[case.key] = " ".join(str(fault).split())
            watch(done, len(self.cases))
        told = "" if answers is None else answers.close()
        place = Path(output) if answers is None else answers.place
        if faults:
            raise _unreadable(faults, len(self.cases), place)
        return place, told

    def _answer(self, key: str, members: Mapping[str, Any]) -> Prediction | Features:
        for member in {(member.head.seen, member.name): member for member in self.members}.values():
            member.warn(key, members["json"])
        return mean_of(member.answer(key, members, self.axes) for member in self.members)

    def _answers(self, output: Path, answer: Prediction | Features, labels: Path | None) -> Answers:
        told: dict[str, Any] = {"labels": labels, "label_names": self.head.label_names, "options": self.maps}
        title = "; ".join(member.answerer.title for member in self.members)
        return answers_to(output, answer, self.head.target, self.cases, **told, title=title)

    def _truth(self) -> Path | None:
        if self.labels is None:
            return None
        if self.target is None or self.target.per_voxel is _is_table(self.labels):
            gives = "features" if self.target is None else self.target.describe()
            wanted = "features have none" if self.target is None else f"give {_LABELS[self.target.per_voxel]}"
            name = self.members[0].name
            raise InputError(f"--labels: {name!r} gives {gives}, and {self.labels} does not say that: {wanted}")
        return self.labels


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


def _unreadable(faults: Mapping[str, str], total: int, place: Path) -> InputError:
    others = f"; the other {total - len(faults)} are in {place}" if total > len(faults) else ""
    lines = [f"{len(faults)} of {total} cases could not be read{others}"]
    return InputError("\n".join([*lines, *(f"{key}: {reason}" for key, reason in faults.items())]))
