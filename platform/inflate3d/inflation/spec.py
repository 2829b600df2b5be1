"""Inflation: how a 2D net becomes a 3D one, as one value that travels whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.plan import InflationPlan, named_plan
from inflate3d.inflation.taps import Taps

AttentionName = Literal["frame", "joint"]
StatisticsName = Literal["clip", "frame"]
TimePadding = Literal["replicate", "zeros", "same"]
_CHOICES = {"attention": AttentionName, "statistics": StatisticsName, "time_padding": TimePadding}


@dataclass(frozen=True)
class Inflation:
    """How a 2D net is inflated, in configs, create_model, run state and published files alike.

    taps: how a 2D filter fills D. plan: kernels and strides along D; "auto" until a net's input is known (see
    resolve_plan). attention: within each "frame", or
    "joint" over all frames of a clip. statistics: what GroupNorm, squeeze-excite and their kin pool over, the "clip" or
    each "frame". time_padding: past its ends a clip goes on as its first and last frame ("replicate": a static clip
    answers as the 2D net did) or as "zeros", as 3D nets from elsewhere were trained; "same": zeros too, as many at each
    end as TensorFlow's SAME puts there, which hangs on the number of frames.
    Raises InputError for a name that there is not, with the close ones.
    """

    taps: Taps = field(default_factory=Taps)
    plan: InflationPlan | Literal["auto"] = "auto"
    attention: AttentionName = "frame"
    statistics: StatisticsName = "clip"
    time_padding: TimePadding = "replicate"

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if (value := getattr(self, name)) not in (allowed := get_args(choices)):
                raise unknown_name(name, str(value), allowed)

    @classmethod
    def of(cls, inflation: str | Inflation, **words: Any) -> Inflation:
        """Return what create_model's keyword arguments make; an Inflation is whole and takes no word beside it."""
        if not isinstance(inflation, Inflation):
            return cls.from_dict({"inflation": inflation, **words})
        for word, value in words.items():
            if value != _DEFAULTS[word]:
                raise InputError(f"{word} is {value!r} beside a whole Inflation; put it in there")
        return inflation

    @classmethod
    def from_dict(cls, words: Mapping[str, Any]) -> Inflation:
        """Read the words of create_model, a config or to_dict; a missing one takes its default.

        plan: a preset's name or a mapping as well. InputError for an unknown word, with the close ones.
        """
        for word in words:
            if word not in _DEFAULTS:
                raise unknown_name("key", str(word), _DEFAULTS, where="inflation")
        values = {**_DEFAULTS, **words}
        taps = Taps(values.pop("inflation"), values.pop("overshoot"))
        return cls(taps, named_plan(values.pop("plan")), **values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, under the names of create_model's keyword arguments."""
        plan = self.plan.to_dict() if isinstance(self.plan, InflationPlan) else self.plan
        chosen = {name: getattr(self, name) for name in _CHOICES}
        return {"inflation": self.taps.name, "overshoot": self.taps.overshoot, "plan": plan, **chosen}

    def differs_from(self, other: Inflation) -> dict[str, Any]:
        """Return the words, but for the plan, that are not those of another value."""
        own, theirs = self.to_dict(), other.to_dict()
        return {word: value for word, value in own.items() if word != "plan" and value != theirs[word]}

    @property
    def laid(self) -> InflationPlan:
        """The plan, which is settled where a net is built."""
        assert isinstance(self.plan, InflationPlan), "resolve_plan comes before a net is built"
        return self.plan

    def __str__(self) -> str:
        """One line: 'center taps, frame attention, clip statistics, time padding replicate; plan slow: strides ...'."""
        return (
            f"{self.taps} taps, {self.attention} attention, {self.statistics} statistics, "
            f"time padding {self.time_padding}; plan {self.plan}"
        )


_DEFAULTS = Inflation().to_dict()
