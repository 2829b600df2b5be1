"""What a transfer measures and how: the settings that make two results comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from inflate3d.contracts import AbstractTarget
from inflate3d.errors import InputError, unknown_name

Mode = Literal["probe", "knn", "finetune"]
MODES: tuple[Mode, ...] = get_args(Mode)
FROZEN: tuple[Mode, ...] = ("probe", "knn")
_ON_REQUEST = (
    "target",
    "init_args",
    "max_train",
)  # said where they are given alone: results without them stay comparable
# What may grow in an output folder: more cells beside finished ones.
_MAY_GROW = ("modes", "fractions", "seeds")


@dataclass(frozen=True)
class Protocol:
    """The settings of a transfer, the same for every arm.

    task: name of a task plug-in. init_args: the task's further arguments. target: which target of the dataset,
    where several fit the task. metric: what chooses and what is reported first; "" is the task's own main metric.
    fractions: shares of the training labels. steps, batch_size: the budget of one fine-tuning; warm-up is a tenth
    of it. learning_rates: the grid of fine-tuning; choice_steps: the budget of each choice (None: steps).
    val_fraction: share of the training samples held out for choices, by group where there are groups; nothing is
    ever trained on them. sample, augment: as in a config's data.datasets.<name>. max_test: at most that many test
    samples, evenly spaced; max_train: about that many at most to train on, and to choose by: each class keeps its
    share, and one sample at least. recalibration_batches: batches of unlabelled training data for BatchNorm's
    statistics.
    """

    dataset: str
    task: str
    target: str = ""
    init_args: dict[str, Any] = field(default_factory=dict)
    metric: str = ""
    modes: tuple[Mode, ...] = MODES
    fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 300
    choice_steps: int | None = None
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    weight_decay: float = 0.05
    val_fraction: float = 0.1
    split_seed: int = 0
    sample: dict[str, Any] = field(default_factory=dict)
    augment: str | list[dict[str, Any]] | None = None
    max_test: int | None = None
    max_train: int | None = None
    recalibration_batches: int = 16

    def __post_init__(self) -> None:
        for mode in self.modes:
            if mode not in MODES:
                raise unknown_name("mode", str(mode), MODES, where="--modes")
        for name in ("modes", "fractions", "seeds", "learning_rates"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InputError(f"--{name} is {list(values)}; give at least one, and no duplicates")
        for share in self.fractions:
            if not 0 < share <= 1:
                raise InputError(
                    f"--fractions: {share:g} is not a share of the labels; it must be above 0 and at most 1"
                )
        for rate in self.learning_rates:
            if not rate > 0:
                raise InputError(f"--learning_rates: {rate:g}; it must be above 0")
        for name in ("steps", "batch_size", "recalibration_batches", "choice_steps", "max_test", "max_train"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} is {value}; it must be at least 1")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"--val_fraction is {self.val_fraction}; it must be between 0 and 1")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protocol:
        """Read a protocol from plain values; InputError for an unknown key."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                raise unknown_name("key", key, known, where="protocol")
        lists = ("modes", "fractions", "seeds", "learning_rates")
        arguments: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in values.items()}
        return cls(**arguments)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {name: value for name, value in asdict(self).items() if name not in _ON_REQUEST or value}
        return json.loads(json.dumps(values))  # type: ignore[no-any-return]

    def fixed(self) -> dict[str, Any]:
        """Return the settings that must agree between two results of one folder."""
        return {k: v for k, v in self.to_dict().items() if k not in _MAY_GROW}


def modes_of(target: AbstractTarget | type[AbstractTarget] | None) -> tuple[Mode, ...]:
    """Return the modes that measure a target: frozen features are probed for classes that exclude each other."""
    return MODES if target is not None and target.exclusive else ("finetune",)


def digest(*parts: Any) -> str:
    """Return 16 hex digits that change when any of these JSON values does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
