"""BackboneConfig: `model.backbone` of a config."""

# Annotations are not postponed here: of postponed ones jsonargparse takes the field's, where the argument's is meant.

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from inflate3d.inflation import AttentionName, Inflation, NetInput, StatisticsName, TimePadding, resolve_plan
from inflate3d.models.publication.index import is_published
from inflate3d.nn.domain import NormName


@dataclass(init=False)
class BackboneConfig:
    """What `model.backbone` says in a config; see create_model for the keys that it shares.

    inflation, overshoot, plan, attention, statistics and time_padding make one Inflation. input_size, spacing_mm: what
    plan "auto" looks at, in place of the datasets' own.
    stems: input channels of each kind of input, by the datasets' modality ({"rgb": 3, "ct": 1}); null: one stem for
    all, grey volumes repeated to its channels. norm: per_domain (running statistics for each dataset, shared affine),
    shared, frozen (the 2D statistics) or group (GroupNorm in place of BatchNorm).
    """

    name: str
    pretrained: bool
    inflation: Inflation
    input_size: Sequence[int] | None
    spacing_mm: Sequence[float] | None
    stems: dict[str, int] | None
    norm: NormName
    drop_path_rate: float
    timm_kwargs: dict[str, Any]

    def __init__(
        self,
        name: str,
        pretrained: bool = False,
        inflation: str | Inflation = "center",
        overshoot: float = 0.25,
        plan: str | dict[str, Any] = "auto",
        attention: AttentionName = "frame",
        statistics: StatisticsName = "clip",
        time_padding: TimePadding = "replicate",
        input_size: Sequence[int] | None = None,
        spacing_mm: Sequence[float] | None = None,
        stems: dict[str, int] | None = None,
        norm: NormName = "per_domain",
        drop_path_rate: float = 0.0,
        timm_kwargs: dict[str, Any] | None = None,
    ) -> None:
        words = dict(plan=plan, attention=attention, statistics=statistics, time_padding=time_padding)
        self.name, self.pretrained = name, pretrained
        self.inflation = Inflation.of(inflation, overshoot=overshoot, **words)
        self.input_size, self.spacing_mm = input_size, spacing_mm
        self.stems, self.norm = stems, norm
        self.drop_path_rate, self.timm_kwargs = drop_path_rate, dict(timm_kwargs or {})

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of `model.backbone` as plain values; BackboneConfig(**values) is the same again."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**own, **self.inflation.to_dict()}

    def resolved(self, datasets: Iterable[NetInput]) -> "BackboneConfig":
        """Return it with plan "auto" as these datasets make it; published weights bring a plan of their own."""
        if self.inflation.plan != "auto" or is_published(self.name):
            return self
        plan = resolve_plan("auto", input_size=self.input_size, spacing_mm=self.spacing_mm, datasets=datasets)
        return replace(self, inflation=replace(self.inflation, plan=plan))
