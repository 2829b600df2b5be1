"""3D nets and weights of the zoos, under names such as "medicalnet/resnet50"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inflate3d.contracts import AbstractZoo, find_zoo
from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import Inflation
from inflate3d.models.publication.adaptation import describe_changes, fit_tensors
from inflate3d.models.publication.load import classifier_prefix, lookup
from inflate3d.models.publication.places import HUB, SCHEMES
from inflate3d.models.sources.torchvision_nets import feature_net, give_contract
from inflate3d.models.sources.weight_files import read_weights
from inflate3d.models.spec import NetSpec
from inflate3d.nn.stems import adapted_stem, first_conv_path

OVERLAY = "pretrained_cfg_overlay"
_PLACES = ("file", "url", "hf_hub_id")


def own_spec(name: str) -> NetSpec | None:
    """Return a zoo net's spec as its weights were trained; None for other names. InputError for a net it refuses."""
    if (found := find_zoo(name)) is None:
        return None
    zoo, net = found
    facts = zoo.nets[net]
    words = {"plan": facts.plan, "time_padding": zoo.time_padding}
    return NetSpec(name, Inflation.from_dict(words), in_chans=facts.in_chans, num_classes=facts.num_classes)


def build_zoo_net(spec: NetSpec) -> nn.Module:
    """Return a zoo net's 2D twin, with random weights and timm's contract. InputError for what it does not take."""
    zoo, name = _found(spec.name)
    _check_options(spec)
    net: Any = zoo.twin(name)
    if not hasattr(net, "feature_info"):
        give_contract(net)
    facts = zoo.nets[name]
    if spec.in_chans != facts.in_chans:
        path = first_conv_path(net)
        net.set_submodule(path, adapted_stem(net.get_submodule(path), spec.in_chans))
    # What timm says of its 2D weights does not hold, nor does a path once a feature net holds the trunk.
    net.pretrained_cfg = {**(net.pretrained_cfg or {}), "mean": None, "std": None, "first_conv": None}
    if spec.features_only:
        return feature_net(net, spec)
    given = {} if spec.global_pool is None else {"global_pool": spec.global_pool}
    if given or spec.num_classes not in (None, facts.num_classes):
        net.reset_classifier(facts.num_classes if spec.num_classes is None else spec.num_classes, **given)
    return net  # type: ignore[no-any-return]


def load_zoo_weights(net: nn.Module, spec: NetSpec, *, cache_dir: str | Path | None = None) -> None:
    """Load a zoo net's 3D weights into its inflated twin, and tell what they are and may be used for.

    They come from where timm_kwargs' pretrained_cfg_overlay says (file=, url=, or hf_hub_id= with hf_hub_filename=),
    else from their publishers. InputError where they do not fit.
    """
    zoo, name = _found(spec.name)
    place = _place(spec) or zoo.place(name)
    found = zoo.convert(name, read_weights(place, cache_dir=cache_dir))
    own = net.state_dict()
    fresh = spec.features_only or spec.num_classes not in (None, zoo.nets[name].num_classes)
    head = classifier_prefix(net) if fresh else None
    wanted = [key for key in own if head is None or not key.startswith(head)]
    names = {name: name for name in found}
    stored = {key: lookup(names, key) for key in wanted}
    if absent := [k for k, name in stored.items() if name is None and not k.endswith("num_batches_tracked")]:
        raise InputError(f"{place}: no tensor for {absent[:3]} ({len(absent)} in all); is it {spec.name}?")
    taken = {key: _shaped(found[name], own[key]) for key, name in stored.items() if name is not None}
    if not fresh and (left := sorted(set(found) - set(own))):
        raise InputError(f"{place}: {spec.name} has no place for {left[:3]} ({len(left)} in all)")
    state = fit_tensors(net, taken, first_conv_path(net), spec.name)
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise InputError(
                f"{place}: {key} has shape {tuple(value.shape)}, {spec.name} wants {tuple(own[key].shape)}"
            )
    net.load_state_dict(state, strict=False)
    if (trained := own_spec(spec.name)) is not None:
        describe_changes(trained, spec, spec.name)
    net.published = _ancestor(zoo, spec.name, place)  # type: ignore[assignment]


def contract_of_zoo(name: str) -> dict[str, Any]:
    """Return what input a zoo net's weights expect, as a publication's `input` says it."""
    zoo, net = _found(name)
    given = asdict(zoo.nets[net].input or zoo.input)
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    intensity = {k: list(v) if isinstance(v, tuple) else v for k, v in given["intensity"].items()}
    return {"axes": "BCDHW", **lists, "intensity": intensity, "media": zoo.media}


def _shaped(value: Tensor, own: Tensor) -> Tensor:
    """Return a published tensor in the twin's precision, without axes of size 1 that the twin's does not have."""
    shapes = [[size for size in shape if size > 1] for shape in (value.shape, own.shape)]
    return (value.reshape(own.shape) if shapes[0] == shapes[1] else value).to(own.dtype)


def _ancestor(zoo: AbstractZoo, name: str, place: str) -> dict[str, Any]:
    """What weights that come from these inherit, as a publication's config.json says it."""
    origin = place if place.startswith((HUB, *SCHEMES)) else zoo.nets[name.partition("/")[2]].weights or zoo.source
    source = {"name": name, "licence": zoo.licence, "origin": origin, "citation": zoo.citation}
    return {"source_weights": source, "training": {"data": [dict(zoo.trained_on)] if zoo.trained_on else []}}


def _check_options(spec: NetSpec) -> None:
    if spec.drop_path_rate:
        raise InputError(
            f"drop_path_rate is {spec.drop_path_rate}; {spec.name} is built as its weights were: leave it out"
        )
    for option in spec.timm_kwargs:
        if option != OVERLAY:
            raise unknown_name("option", option, (OVERLAY,), where=spec.name)


def _place(spec: NetSpec) -> str | None:
    """Return where the caller says that the weights lie; None where they leave it to the zoo."""
    given: Mapping[str, Any] = spec.timm_kwargs.get(OVERLAY) or {}
    for key in given:
        if key not in (*_PLACES, "hf_hub_filename"):
            raise unknown_name("key", key, (*_PLACES, "hf_hub_filename"), where=f"{spec.name}: {OVERLAY}")
    if "hf_hub_id" in given:
        return f"hf-hub:{given['hf_hub_id']}/{given.get('hf_hub_filename', 'model.safetensors')}"
    return next((str(given[key]) for key in _PLACES if key in given), None)


def _found(name: str) -> tuple[AbstractZoo, str]:
    found = find_zoo(name)
    assert found is not None, f"{name} is none of a zoo's"
    return found
