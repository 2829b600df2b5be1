"""A part of a model that leaves it: one call from a normalised clip to an answer, and what its user must know."""

# B batch, C channels, D H W voxels along z y x.

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import AbstractTarget
from inflate3d.data.samples.options import sample_options
from inflate3d.errors import InputError, unknown_name
from inflate3d.evaluation.prediction.answerers import PublishedAnswerer, answerer_of
from inflate3d.evaluation.prediction.predict import describe
from inflate3d.models import create_model
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.schema import read_published_config
from inflate3d.sample import Triple

FORMAT = "inflate3d-portable/1"


@dataclass(frozen=True)
class Part:
    """net: (B, C, D, H, W) -> a tensor, B first. size: the (D, H, W) that it is made for.

    depth_step: free depths are multiples of it, where depth may be free; None: the net sees windows of `size` alone.
    facts: what is written into the file beside it, as plain JSON values. published: config.json of published weights.
    """

    net: nn.Module
    channels: int
    size: Triple
    depth_step: int | None
    facts: dict[str, Any] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)


class Answers(nn.Module):
    """A net whose logits become what its target tells, as in prediction: probabilities, masks, values."""

    def __init__(self, net: nn.Module, target: AbstractTarget | None) -> None:
        super().__init__()
        self.net, self.target = net, target

    def forward(self, clip_BCDHW: Tensor) -> Tensor:
        """Return the answer, B first; features or logits where there is no target."""
        y: Tensor = self.net(clip_BCDHW)
        return y if self.target is None else self.target.answer(y).tensor


def part_of(
    model: str,
    *,
    dataset: str | None = None,
    features: bool = False,
    size: Triple | None = None,
    cache_dir: str | None = None,
) -> Part:
    """Return what a published name, or a 2D net's, answers.

    dataset: whose head (its name, or <dataset>-<task>), where there are several. features: pooled features in its
    place. size: (D, H, W), where the weights do not state it. Raises InputError for what is missing or does not fit.
    """
    if published_folder(model, cache_dir) is None:
        return _part_of_2d(model, dataset, features=features, size=size, cache_dir=cache_dir)
    answerer = answerer_of(model, cache_dir=cache_dir)
    assert isinstance(answerer, PublishedAnswerer)
    name = _chosen(answerer, dataset)
    answerer.prepare(name, torch.device("cpu"), features=features)
    head, contract = answerer.heads[name], dict(answerer.inputs[name])
    window = None if answerer.windows is None else answerer.windows
    stated = window.size if window else sample_options(head.card, answerer.sample(name)).input_size
    facts: dict[str, Any] = {"head": None if features else name, "input": contract}
    if window:
        facts |= {"window": list(window.size), "window_overlap": window.overlap}
    facts["gives"] = "features"
    if answerer.target is not None:
        names = list(answerer.target.answers)
        facts |= {"gives": answerer.target.describe(), "names": names, "target": answerer.target.to_dict()}
    config = read_published_config(published_folder(model, cache_dir))  # type: ignore[arg-type]
    facts |= {key: config[key] for key in ("source_weights", "private") if key in config}
    net = Answers(answerer.net, answerer.target)
    part = _part(model, net, answerer.channels, _size(model, stated, size, is_window=window is not None), facts)
    return replace(part, published=config)


def part_of_net(net: nn.Module, size: Triple, *, title: str = "", gives: str = "logits") -> Part:
    """Return a net of create_model or create_segmenter as it is; `gives` says what its tensor is."""
    contract = dict(getattr(net, "input_spec", None) or {})
    names = list(getattr(net, "label_names", ()))
    facts = {"head": None, "input": contract, "gives": gives, "names": names}
    modules: Any = net.modules()
    channels = next(m.in_chans_expected for m in modules if hasattr(m, "in_chans_expected"))
    return _part(title or type(net).__name__, net.eval(), int(channels), size, facts)


def _part_of_2d(model: str, dataset: str | None, *, features: bool, size: Triple | None, cache_dir: str | None) -> Part:
    if dataset is not None:
        raise InputError(f"--dataset {dataset!r} is for published heads; {model!r} is a 2D net's name")
    size = _size(model, None, size, is_window=False)
    classes = {"num_classes": 0} if features else {}
    net = create_model(model, True, input_size=size, cache_dir=cache_dir, **classes)  # type: ignore[arg-type]
    return part_of_net(net, size, title=model, gives="features" if features else "logits")


def _part(title: str, net: nn.Module, channels: int, size: Triple, facts: dict[str, Any]) -> Part:
    inflated: Any = next(m for m in net.modules() if hasattr(m, "depth_reduction"))
    step = None if "window" in facts else int(inflated.depth_reduction)
    return Part(net, channels, size, step, {"format": FORMAT, "model": title, **facts})


def _chosen(answerer: PublishedAnswerer, name: str | None) -> str:
    """Return which head leaves. InputError where none is named and there are several."""
    if name is not None and name not in answerer.heads:
        raise unknown_name("dataset", name, answerer.heads, where="--dataset")
    if name is None and len(answerer.heads) > 1:
        listed = ", ".join(f"{name} ({describe(head)})" for name, head in answerer.heads.items())
        raise InputError(f"{answerer.title} has several heads; name one by --dataset: {listed}")
    return name or next(iter(answerer.heads))


def _size(model: str, stated: Triple | None, given: Triple | None, *, is_window: bool) -> Triple:
    if is_window and given is not None and given != stated:
        raise InputError(f"--input_size is {given}; {model} answers in windows of {stated}: leave it out")
    if (size := given or stated) is None:
        raise InputError(f"{model} does not state the size of its input; give one: --input_size D,H,W")
    return size
