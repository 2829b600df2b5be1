"""Published weights become a net: a directory without pickle, with its hashes, contract and replay checked.

config.json (format, net, input contract, heads, data, versions), model.safetensors (timm's keys; other domains'
statistics and stems as extra tensors, and what colours are to stems of grey), heads.safetensors (decoders and
classifiers), replay.safetensors (an input and its pooled features), README.md, SHA256SUMS.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import Inflation, NetInput, resolve_plan
from inflate3d.models.headed import HeadedNet
from inflate3d.models.input_contract import contract_of_2d
from inflate3d.models.levels import distinct_levels
from inflate3d.models.publication.adaptation import describe_changes, fit_tensors, resize_depth
from inflate3d.models.publication.allocation import build_within
from inflate3d.models.publication.fetch import check_directory
from inflate3d.models.publication.heads import entry_of, head_tensors, is_per_voxel, load_head, target_of
from inflate3d.models.publication.integrity import plain_file
from inflate3d.models.publication.layout import COLOUR_KEY, CONFIG, HEADS, NORM_KEY, STEM_KEY, WEIGHTS
from inflate3d.models.publication.replay import check_replay
from inflate3d.models.publication.schema import read_published_config
from inflate3d.models.publication.tensor_file import FLOATS, Stored, read_header, read_tensors
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import Domain, convert_norms
from inflate3d.nn.heads import head_type
from inflate3d.nn.stems import first_conv_path
from inflate3d.sample import Spacing, Triple

_ROOM = 64 * 2**20  # numbers that a net may hold beyond a few times those of its file
_TIMES = 8


def load_published(
    folder: Path,
    given: Inflation,
    *,
    build: Callable[[NetSpec], nn.Module],
    pretrained: bool,
    norm_domain: str | None,
    head: str | None,
    input_size: Triple | None,
    spacing_mm: Spacing | None,
    options: Mapping[str, Any],
) -> nn.Module:
    """Build the net of a published directory and load its weights.

    given: what is not as when left out stands against what the weights carry. Its plan "auto" keeps the net's own;
    another one may have other strides, and other kernels, which are resized along D. input_size: with plan "auto",
    fewer strides along D where its D is too short for the net's own. head: a published one, with the stem and
    statistics of its dataset; one that is no classifier comes as a HeadedNet. options: as NetSpec's; another in_chans
    adapts the stem (see adapt_channels), another num_classes brings a fresh classifier. The log tells what was adapted.
    InputError where a file has changed, or `given` or spacing_mm is not what the weights carry.
    """
    plain_file(folder, CONFIG)
    config = read_published_config(folder)
    stated = check_directory(folder) if pretrained else {}
    header = read_header(plain_file(folder, WEIGHTS)) if pretrained else {}
    if not pretrained:
        warnings.warn(f"{folder}: pretrained=False, so the weights are random; pass pretrained=True", stacklevel=3)
    entry = _entry_of(config, head, options) if head is not None else {}
    classifier = head_type(entry["type"], where=f"{folder}: head {head!r}").classifier if entry else ""
    theirs = entry["dataset"] if entry.get("dataset") in config["norm_domains"] else None
    norm_domain = _other_domain(config, norm_domain or theirs)
    contract = _input_of(config, norm_domain)
    brought = {
        "in_chans": _stem_channels(header, config, norm_domain),
        "num_classes": (entry["head"]["num_classes"] if classifier else 0) if entry else None,
    }
    own = NetSpec.from_dict(config["net"])
    inputs = NetInput(input_size, spacing_mm)
    inflation = carried_inflation(own, given, inputs, contract, folder, pretrained=pretrained)
    spec = _adapted(own, inflation, {**brought, **options})
    most = _TIMES * sum(s.numbers for s in header.values()) if pretrained else (folder / WEIGHTS).stat().st_size
    net = build_within(lambda: build(spec), most + _ROOM, where=str(folder / CONFIG))
    _give_contract(net, config, contract, entry)
    if not pretrained:
        return net
    fresh = spec.num_classes != own.num_classes
    _load(net, header, config, norm_domain, fresh_classifier=fresh, is_whole=spec == own, folder=folder)
    describe_changes(own, spec, str(folder))
    if classifier and spec.num_classes == entry["head"]["num_classes"] and not spec.features_only:
        tensors = head_tensors(folder, str(head), entry, stated)
        _load_classifier(net, folder, str(head), tensors, prefix=classifier)
    if spec == own and norm_domain is None:
        check_replay(net, folder)
    return net if not entry or classifier else headed(net, folder, str(head), entry, stated)


def domain_keys(
    names: Sequence[str], config: Mapping[str, Any], norm_domain: str | None, stem_path: str
) -> dict[str, str]:
    """Return, for each of timm's keys, the tensor of the file that holds it, with one domain's statistics and stem."""
    keys = {k: k for k in names if not k.startswith((NORM_KEY, STEM_KEY))}
    if norm_domain is None:
        return keys
    domains = config["norm_domains"]
    if norm_domain not in domains:
        raise unknown_name("norm_domain", norm_domain, domains)
    for prefix, path in ((f"{NORM_KEY}{norm_domain}.", ""), (f"{STEM_KEY}{domains[norm_domain]}.", f"{stem_path}.")):
        keys.update({path + k.removeprefix(prefix): k for k in names if k.startswith(prefix)})
    return keys


def _other_domain(config: Mapping[str, Any], norm_domain: str | None) -> str | None:
    """Return a domain's name; None for the one whose stem and statistics stand under timm's own keys."""
    return None if norm_domain == config["input"].get("domain") else norm_domain


def _input_of(config: Mapping[str, Any], norm_domain: str | None) -> dict[str, Any]:
    """Return the input contract of a domain; without intensity where the publication does not state that domain's."""
    if norm_domain is None:
        return config["input"]
    heads = (head for head in config.get("heads", {}).values() if head.get("dataset") == norm_domain)
    head: Mapping[str, Any] = next(heads, {})
    unknown = {"domain": norm_domain, "intensity": None}
    return config.get("inputs", {}).get(norm_domain) or head.get("input") or unknown


def carried_inflation(
    own: NetSpec,
    given: Inflation,
    inputs: NetInput,
    contract: Mapping[str, Any],
    where: Path | str,
    *,
    pretrained: bool,
) -> Inflation:
    """Return how the net is inflated: as published but for the plan, or for random weights as given."""
    carried = {**own.inflation.to_dict(), "spacing_mm": contract.get("spacing_mm")}
    asked = given.differs_from(Inflation())
    size, spacing_mm = inputs
    for word, value in {**asked, **({} if spacing_mm is None else {"spacing_mm": list(spacing_mm)})}.items():
        if pretrained and value != carried[word]:
            raise InputError(
                f"{where}: {word} is {value!r}, but the published weights carry their own: {carried[word]!r}. "
                f"Leave {word} out, or start from random weights: pretrained=False"
            )
    # Random weights for a spacing have no strides to keep.
    kept = own.inflation.laid if pretrained or spacing_mm is None else None
    plan = resolve_plan(given.plan, input_size=size, spacing_mm=spacing_mm, own=kept)
    return Inflation.from_dict({**own.inflation.to_dict(), **asked, "plan": plan})


def _adapted(own: NetSpec, inflation: Inflation, options: Mapping[str, Any]) -> NetSpec:
    changes = {k: v for k, v in options.items() if v is not None and k != "timm_kwargs"}
    kwargs = {**own.timm_kwargs, **options["timm_kwargs"]}
    return replace(own, inflation=inflation, timm_kwargs=kwargs, **changes)


def _give_contract(
    net: nn.Module, config: Mapping[str, Any], contract: Mapping[str, Any], entry: Mapping[str, Any]
) -> None:
    """Put the norms of a publication, what the weights of a domain expect and their classes' names on the net."""
    if config["norm"] == "group":
        convert_norms(net, "group", Domain())
    target = target_of(entry)
    net.input_spec = {  # type: ignore[assignment]
        **contract_of_2d(net, net.net_spec.in_chans),  # type: ignore[union-attr, arg-type]
        **{"intensity": None, **contract},
        "plan": config["net"]["plan"],
        "inflation": net.net_spec.to_dict()["inflation"],  # type: ignore[union-attr, operator]
        "versions": config.get("versions", {}),
    }
    net.published = dict(config)  # type: ignore[assignment]
    names = (target.names if target is not None else config.get("classes")) or []
    net.label_names = list(names) if len(names) == getattr(net, "num_classes", None) else []  # type: ignore[assignment]


def _load(
    net: nn.Module,
    header: Mapping[str, Stored],
    config: Mapping[str, Any],
    norm_domain: str | None,
    *,
    fresh_classifier: bool,
    is_whole: bool,
    folder: Path,
) -> None:
    """Load strictly; only a fresh classifier, and what features_only leaves out, may differ.

    is_whole: the net is the one that was published, so that every tensor of the file has a place in it.
    """
    stem = first_conv_path(net)
    stored = domain_keys(list(header), config, norm_domain, stem)
    own = net.state_dict()
    found = {key: lookup(stored, key) for key in own}
    missing = [k for k, v in found.items() if v is None]
    classifier = classifier_prefix(net) if fresh_classifier else None
    if classifier is not None:
        missing = [k for k in missing if not k.startswith(classifier)]
        found = {k: v for k, v in found.items() if not k.startswith(classifier)}
    if missing:
        raise InputError(f"{folder / WEIGHTS}: no tensor for {missing[:3]} ({len(missing)} in all); publish it again")
    taken = {key: name for key, name in found.items() if name is not None}
    _check_all_taken(header, config, {*own, *taken.values()}, is_whole=is_whole, file=folder / WEIGHTS)
    for key, name in taken.items():
        if (header[name].dtype in FLOATS) != own[key].is_floating_point():
            raise InputError(
                f"{folder / WEIGHTS}: {key} is {header[name].dtype}, the net wants {own[key].dtype}; publish it again"
            )
        if header[name].numbers > 64 * own[key].numel() + 4096:
            raise _misfit(folder, key, header[name].shape, own[key].shape)
    beside = {COLOUR_KEY} & set(header)
    for key in beside:
        kernel = header[taken[f"{stem}.weight"]].shape
        if tuple(header[key].shape) != (kernel[0], 3, *kernel[2:]) or header[key].dtype not in FLOATS:
            raise _misfit(folder, key, header[key].shape, (kernel[0], 3, *kernel[2:]))
    tensors = read_tensors(folder / WEIGHTS, {*taken.values(), *beside})
    # A file may hold halves; what adapts them reckons in the net's own precision.
    found_tensors = {key: tensors[name].to(own[key].dtype) for key, name in taken.items()}
    colour_part = tensors[COLOUR_KEY].float() if beside else None
    state = fit_tensors(net, found_tensors, stem, str(folder), colour_part)
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise _misfit(folder, key, value.shape, own[key].shape)
    net.load_state_dict(state, strict=False)
    if colour_part is not None and state[f"{stem}.weight"].shape[1] == 1:
        depth = state[f"{stem}.weight"].shape[2]
        net.colour_part = resize_depth(colour_part, depth) if colour_part.ndim == 5 else colour_part  # type: ignore[assignment]


def _check_all_taken(
    header: Mapping[str, Stored], config: Mapping[str, Any], places: Collection[str], *, is_whole: bool, file: Path
) -> None:
    """Refuse tensors without a place: neither the net has one, nor a domain that the publication names."""
    domains = config["norm_domains"]
    known = tuple(f"{NORM_KEY}{name}." for name in domains) + tuple(f"{STEM_KEY}{stem}." for stem in domains.values())
    left = [n for n in header if n not in places and n != COLOUR_KEY and not n.startswith(known)]
    if norms := [n for n in left if n.startswith((NORM_KEY, STEM_KEY))] or (left if is_whole else []):
        raise InputError(f"{file}: the net has no place for {norms[:3]} ({len(norms)} in all); publish it again")


def _misfit(folder: Path, key: str, found: Sequence[int], wanted: Sequence[int]) -> InputError:
    return InputError(
        f"{folder / WEIGHTS}: {key} has shape {tuple(found)}, the net wants {tuple(wanted)}. "
        "Leave the net's own options (img_size and the like) as published"
    )


def lookup(stored: Mapping[str, str], key: str) -> str | None:
    """Find a tensor under the full net's key; timm's feature nets put a prefix before it or flatten `a.0` to `a_0`."""
    candidates = [key, key.partition(".")[2]]
    head, _, tail = key.partition(".")
    if "_" in head:
        candidates.append(f"{head.replace('_', '.', 1)}.{tail}")
        candidates.append(f"{'.'.join(head.rsplit('_', 1))}.{tail}")
    return next((stored[c] for c in candidates if c in stored), None)


def classifier_prefix(net: nn.Module) -> str | None:
    """Return what the keys of a net's classifier begin with; None for a net without one."""
    classifier = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]
    return next((f"{n}." for n, m in net.named_modules() if m is classifier), None)


def _entry_of(config: Mapping[str, Any], name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config says of a head. InputError for one that create_segmenter loads."""
    entry = entry_of(config, name)
    if is_per_voxel(entry):
        raise InputError(f"head={name!r} segments; load it by create_segmenter(..., pretrained=True, head={name!r})")
    return entry


def headed(net: nn.Module, folder: Path, name: str, entry: Mapping[str, Any], stated: Mapping[str, str]) -> HeadedNet:
    """Return a net under a published head that is no classifier. InputError for a net that is no encoder alone."""
    if net.net_spec.features_only or getattr(net, "num_classes", 0):  # type: ignore[union-attr]
        raise InputError(f"head={name!r} is a head of its own: leave num_classes and features_only out")
    levels, info = distinct_levels(net)
    whole = HeadedNet(net, levels, load_head(folder, name, entry, info, stated))
    target = target_of(entry)
    whole.label_names = list(target.names) if target is not None else []
    return whole


def _load_classifier(net: nn.Module, folder: Path, head: str, tensors: Mapping[str, Tensor], *, prefix: str) -> None:
    classifier: Any = net.get_classifier()  # type: ignore[operator]
    if not isinstance(classifier, nn.Linear):
        raise InputError(f"{folder}: this net's classifier is a {type(classifier).__name__}; take head=None")
    try:
        classifier.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()})
    except RuntimeError as fault:
        raise InputError(f"{folder / HEADS}: head {head!r} does not fit the net: {str(fault)[:200]}") from fault


def _stem_channels(header: Mapping[str, Stored], config: Mapping[str, Any], domain: str | None) -> int | None:
    """The input channels of a domain's own stem; None where it shares the net's, or is none of the publication's."""
    prefix = f"{STEM_KEY}{config['norm_domains'].get(domain)}."
    shapes = [s.shape for name, s in header.items() if name == f"{prefix}weight" and len(s.shape) > 1]
    return shapes[0][1] if shapes else None
