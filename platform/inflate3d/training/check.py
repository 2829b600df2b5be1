"""What can be wrong between tasks and datasets, told before anything is built. No torch is imported here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inflate3d.contracts import AbstractTask, DatasetCard, SupervisedTask
from inflate3d.contracts.task import fit_target
from inflate3d.errors import InputError, unknown_name


@dataclass(frozen=True)
class Problem:
    """One mistake: where in a config, and what it is."""

    key_path: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.key_path)}: {self.text}"


@dataclass(frozen=True)
class Needs:
    """What a task's class says that it needs, under its name: media, and the name of a target's class."""

    title: str
    media: Sequence[str]
    target: str | None

    @classmethod
    def of(cls, task: AbstractTask | type[AbstractTask]) -> Needs:
        """Read an object or a class."""
        title = task.__name__ if isinstance(task, type) else type(task).__name__
        return cls(title, task.media, None if task.target is None else task.target.__name__)


def check_run(
    tasks: Mapping[str, AbstractTask], cards: Mapping[str, DatasetCard], *, loss_weighting: str = "fixed"
) -> list[Problem]:
    """Return what is wrong between tasks and the cards of `data.datasets`: the first is what a run is refused for."""
    found: list[Problem] = []
    for name, task in tasks.items():
        found += task_problems(name, Needs.of(task), task.target_names or task.datasets, cards)
        if loss_weighting == "constant" and not isinstance(task, SupervisedTask):
            text = f"constant divides by the loss of a constant answer; {type(task).__name__} of task {name!r} has none"
            found.append(Problem(("model", "loss_weighting"), text))
    return found + unused_datasets([dataset for task in tasks.values() for dataset in task.datasets], cards)


def bind_tasks(tasks: Mapping[str, AbstractTask], cards: Mapping[str, DatasetCard]) -> None:
    """Give each task the cards of its datasets; InputError says where they do not go together."""
    for name, task in tasks.items():
        try:
            task.bind(cards)
        except InputError as fault:
            raise InputError(str(Problem(_where(name), str(fault)))) from fault


def _where(task: str) -> tuple[str, ...]:
    return ("model", "tasks", task, "init_args", "datasets")


def task_problems(
    name: str, needs: Needs, datasets: Sequence[str] | Mapping[str, str], cards: Mapping[str, DatasetCard]
) -> list[Problem]:
    """Return what is wrong between what one task needs and what it says under `datasets`."""
    named: Mapping[str, str] = datasets if isinstance(datasets, Mapping) else {}
    found = []
    for dataset in datasets:
        try:
            if dataset not in cards:
                raise unknown_name("dataset", dataset, cards, see="the keys of data.datasets")
            given = named.get(dataset)
            fit_target(needs.title, dataset, cards[dataset], media=needs.media, target=needs.target, given=given)
        except InputError as fault:
            found.append(Problem(_where(name), str(fault)))
    return found


def unused_datasets(used: Iterable[str], datasets: Iterable[str]) -> list[Problem]:
    """Return a problem for each dataset that no task names."""
    used = set(used)
    return [
        Problem(("data", "datasets", name), "no task uses it; name it under model.tasks, or set it to null")
        for name in datasets
        if name not in used
    ]
