"""Arms: the starts that are compared. Every model gets the baselines scratch and inflated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inflate3d.contracts import DatasetCard, zoo_names
from inflate3d.errors import InputError
from inflate3d.inflation import Inflation, NetInput
from inflate3d.models import BackboneConfig
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.spec import NetSpec

SCRATCH, INFLATED = "scratch", "inflated"


@dataclass(frozen=True)
class Arm:
    """One start: a short name for tables, and the backbone before any training on the target.

    runs: published weights of several pretrainings; each seed takes one in turn, so the spread over seeds includes
    pretraining. head: the published head that a fine-tuning begins as, its last layer fresh where names of classes
    differ; "": a fresh one.
    """

    name: str
    backbone: BackboneConfig
    runs: tuple[str, ...] = ()
    head: str = ""

    def of(self, seed: int) -> BackboneConfig:
        """Return the backbone that a seed starts from."""
        return replace(self.backbone, name=self.runs[seed % len(self.runs)]) if self.runs else self.backbone

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "name": self.name,
            "backbone": self.backbone.to_dict(),
            **({"runs": list(self.runs)} if self.runs else {}),
            **({"head": self.head} if self.head else {}),
        }


def arms_for(
    models: Sequence[str],
    card: DatasetCard,
    *,
    pretrained: Mapping[str, str] | None = None,
    datasets: Sequence[NetInput] = (),
    timm_kwargs: Mapping[str, Any] | None = None,
    head: str = "",
    **inflation: Any,
) -> list[Arm]:
    """Return an arm for every model, and the two baselines for each of their architectures.

    scratch: the architecture with random weights, its temporal kernels drawn as 3D ones (`random` taps of He's scale).
    inflated: its 2D weights, inflated, and nothing else. A 2D name among the models is its own inflated baseline; the
    words of inflation hold for it, plan "auto" as `datasets` make it, while published weights bring their own, which
    their baselines take; those of a zoo's net are its 2D architecture. pretrained: files of 2D weights by architecture,
    "" for any, and of 3D weights by a zoo's name. head: what the published ones among the models begin a fine-tuning
    as. InputError for an unknown name.
    """
    value = Inflation.from_dict(inflation)
    published: list[Arm] = []
    bases: dict[str, BackboneConfig] = {}
    stems = {card.modality: len(card.input.channels)}
    for model in models:
        spec = None if (folder := published_folder(model)) is None else _spec_in(folder)
        zoo_net = zoo_names().get(spec.name if spec else model)
        if spec is not None and zoo_net is None:
            base = _base_of(spec)
        else:
            name = zoo_net.base if zoo_net else model
            base = BackboneConfig(name, inflation=value, timm_kwargs=dict(timm_kwargs or {})).resolved(datasets)
        if spec is not None or zoo_net is not None:
            kwargs = _file_of(pretrained or {}, model)
            backbone = BackboneConfig(model, pretrained=True, stems=stems, norm="shared", timm_kwargs=kwargs)
            published.append(Arm(_short(model), backbone, head=head))
        base = replace(base, stems=stems, norm="shared")
        bases.setdefault(base.name, base)
    arms = [*_baselines(list(bases.values()), pretrained or {}), *published]
    names = [arm.name for arm in arms]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"two models would both be called {twice[0]!r}; give each once, from folders with different names"
        )
    return arms


def _baselines(bases: Sequence[BackboneConfig], files: Mapping[str, str]) -> Iterator[Arm]:
    for base in bases:
        ending = f" {base.name}" if len(bases) > 1 else ""
        kwargs = {**base.timm_kwargs, **_file_of(files, base.name, "")}
        drawn = replace(base.inflation, taps=replace(base.inflation.taps, name="random"))
        yield Arm(SCRATCH + ending, replace(base, pretrained=False, inflation=drawn))
        yield Arm(INFLATED + ending, replace(base, pretrained=True, timm_kwargs=kwargs))


def _file_of(files: Mapping[str, str], *names: str) -> dict[str, Any]:
    file = next((files[name] for name in names if name in files), None)
    return {} if file is None else {"pretrained_cfg_overlay": {"file": file}}


def is_baseline(name: str) -> bool:
    """Whether an arm is a baseline, of any architecture."""
    return name.split(" ")[0] in (SCRATCH, INFLATED)


def is_compared(arm: str, other: str) -> bool:
    """Whether a report measures one arm against another: a baseline; two baselines only of one architecture."""
    return is_baseline(other) and (not is_baseline(arm) or _ending(arm) == _ending(other))


def architectures(names: Iterable[str]) -> list[str]:
    """Return the architectures for which both baselines are among these arms; "" if there is only one."""
    names = list(names)
    endings = [_ending(name) for name in names if name.split(" ")[0] == SCRATCH]
    return [ending for ending in endings if f"{INFLATED} {ending}".rstrip() in names]


def _ending(baseline: str) -> str:
    return baseline.partition(" ")[2]


def _spec_in(folder: Path) -> NetSpec:
    return NetSpec.from_dict(read_published_config(folder)["net"])


def _base_of(spec: NetSpec) -> BackboneConfig:
    taps = spec.inflation.taps
    exact = replace(spec.inflation, taps=taps if taps.is_exact else replace(taps, name="center"))
    return BackboneConfig(spec.name, inflation=exact, timm_kwargs=dict(spec.timm_kwargs))


def _short(model: str) -> str:
    if model in zoo_names():
        return model.replace("/", "-")
    return model.rstrip("/").removeprefix("local-dir:").rpartition("/")[2]
