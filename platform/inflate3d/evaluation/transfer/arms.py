"""Arms: the starts that are compared. The baselines scratch and inflated come along with every model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from inflate3d.contracts import DatasetCard
from inflate3d.errors import InputError
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.spec import NetSpec

SCRATCH, INFLATED = "scratch", "inflated"


@dataclass(frozen=True)
class Arm:
    """One start: a short name for tables, and the backbone before any training on the target.

    runs: published weights of several pretrainings; each seed takes one, in turn, so that the spread over seeds is that
    of pretraining too.
    """

    name: str
    backbone: BackboneConfig
    runs: tuple[str, ...] = ()

    def of(self, seed: int) -> BackboneConfig:
        """Return the backbone that a seed starts from."""
        return replace(self.backbone, name=self.runs[seed % len(self.runs)]) if self.runs else self.backbone

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "backbone": asdict(self.backbone),
            **({"runs": list(self.runs)} if self.runs else {}),
        }


def arms_for(
    models: Sequence[str],
    card: DatasetCard,
    *,
    pretrained: Mapping[str, str] | None = None,
    inflation: str = "center",
    overshoot: float = 0.25,
    plan: str = "auto",
    input_size: Sequence[int] | None = None,
    timm_kwargs: Mapping[str, Any] | None = None,
) -> list[Arm]:
    """Return an arm for every model, and for each architecture among them the two baselines.

    scratch: the architecture with random weights, its temporal kernels drawn as 3D ones (`random` taps of He's scale).
    inflated: its 2D weights, inflated, and nothing else. A 2D name among the models is its own inflated baseline; the
    settings of inflation hold for it, while published weights bring their own plan, which their baselines take.
    pretrained: files of 2D weights by architecture, "" for any. InputError for an unknown name.
    """
    files = dict(pretrained or {})
    published: list[Arm] = []
    bases: dict[str, BackboneConfig] = {}
    stems = {card.modality: len(card.input.channels)}
    for model in models:
        folder = published_folder(model)
        if folder is None:
            options = {"inflation": inflation, "overshoot": overshoot, "plan": plan}
            sized = {"input_size": input_size, "spacing_mm": card.input.spacing_mm} if plan == "auto" else {}
            base = BackboneConfig(model, timm_kwargs=dict(timm_kwargs or {}), **options, **sized)  # type: ignore[arg-type]
        else:
            spec = NetSpec.from_dict(read_published_config(folder)["net"])
            base = _base_of(spec)
            published.append(Arm(_short(model), BackboneConfig(model, pretrained=True, stems=stems, norm="shared")))
        base = replace(base, stems=stems, norm="shared")
        bases.setdefault(base.name, base)
    arms = []
    for name, base in bases.items():
        ending = f" {name}" if len(bases) > 1 else ""
        kwargs = dict(base.timm_kwargs)
        if file := files.get(name, files.get("")):
            kwargs["pretrained_cfg_overlay"] = {"file": file}
        arms.append(Arm(SCRATCH + ending, replace(base, pretrained=False, inflation="random")))
        arms.append(Arm(INFLATED + ending, replace(base, pretrained=True, timm_kwargs=kwargs)))
    names = [arm.name for arm in (*arms, *published)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two models would both be called {twice[0]!r}; give each once, in folders of different names")
    return [*arms, *published]


def is_baseline(name: str) -> bool:
    """Whether an arm is one that others are measured against, of whatever architecture."""
    return name.split(" ")[0] in (SCRATCH, INFLATED)


def is_compared(arm: str, other: str) -> bool:
    """Whether a report measures one arm against another: a baseline, and of two baselines one architecture's own."""
    return is_baseline(other) and (not is_baseline(arm) or _ending(arm) == _ending(other))


def architectures(names: Iterable[str]) -> list[str]:
    """Return the architectures that both baselines among some arms' names stand for; "" where there is but one."""
    names = list(names)
    endings = [_ending(name) for name in names if name.split(" ")[0] == SCRATCH]
    return [ending for ending in endings if f"{INFLATED} {ending}".rstrip() in names]


def _ending(baseline: str) -> str:
    return baseline.partition(" ")[2]


def _base_of(spec: NetSpec) -> BackboneConfig:
    taps = spec.taps if spec.taps.is_exact else replace(spec.taps, name="center")
    return BackboneConfig(
        spec.name,
        inflation=taps.name,
        overshoot=taps.overshoot,
        plan=spec.plan.to_dict(),
        attention=spec.attention,
        statistics=spec.statistics,
        timm_kwargs=dict(spec.timm_kwargs),
    )


def _short(model: str) -> str:
    return model.rstrip("/").removeprefix("local-dir:").rpartition("/")[2]
