"""Which tasks each dataset serves, and the heads that follow from it, by the names that publications give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inflate3d.contracts import AbstractTarget, AbstractTask, DatasetCard

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PlacedHead:
    """One head: a task's module that serves one dataset.

    target: what it answers for; None: no target. label_names: what the dataset's own labels are of its names.
    """

    task: str
    dataset: str
    card: DatasetCard
    target: AbstractTarget | None
    module: nn.Module
    label_names: tuple[str, ...] = ()


def tasks_of(tasks: Mapping[str, AbstractTask]) -> dict[str, list[str]]:
    """Return the names of each dataset's tasks, in the order of the tasks."""
    found: dict[str, list[str]] = {}
    for name, task in tasks.items():
        for dataset in task.datasets:
            found.setdefault(dataset, []).append(name)
    return found


def placed_heads(tasks: Mapping[str, AbstractTask]) -> dict[str, PlacedHead]:
    """Return every head by its name: that of its dataset where it is the only one, else <dataset>-<task>.

    Modules that answer for no dataset are no heads; one may answer for several. Building comes first.
    """
    held = {d: [n for n in names if tasks[n].head_of(d) is not None] for d, names in tasks_of(tasks).items()}
    return {
        (dataset if len(names) == 1 else f"{dataset}-{name}"): _placed(name, tasks[name], dataset)
        for dataset, names in held.items()
        for name in names
    }


def _placed(name: str, task: AbstractTask, dataset: str) -> PlacedHead:
    has_target = dataset in task.target_names
    target = task.target_of(dataset) if has_target else None
    label_names = task.label_names(dataset) if has_target else ()
    module = task.head_of(dataset)
    assert module is not None, f"{name} has no head for {dataset}"
    return PlacedHead(name, dataset, task.cards[dataset], target, module, label_names)
