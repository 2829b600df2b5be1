"""publish_with_heads: a publication with heads of another that was trained on it, its backbone frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from inflate3d.errors import InputError, unknown_name
from inflate3d.models.publication.layout import COLOUR_KEY, NORM_KEY, STEM_KEY
from inflate3d.models.publication.load import classifier_prefix, domain_keys
from inflate3d.nn.stems import adapt_channels, first_conv_path
from inflate3d.publishing.additions import Additions
from inflate3d.publishing.again import folder_of
from inflate3d.publishing.contents import Contents, published_contents
from inflate3d.publishing.destination import parse_destination
from inflate3d.publishing.export import Outcome, export
from inflate3d.publishing.from_run import NOTHING
from inflate3d.publishing.precision import Precision
from inflate3d.publishing.recalibrated import net_with
from inflate3d.publishing.soup import contents_of

_STATISTICS = (".running_mean", ".running_var")
_COUNTER = ".num_batches_tracked"


def publish_with_heads(
    source: str,
    other: str,
    destination: str,
    *,
    which: str = "best",
    domain: str | None = None,
    additions: Additions = NOTHING,
    precision: Precision = "float32",
    name: str | None = None,
    dry_run: bool = False,
) -> Outcome:
    """Publish a publication's weights, unchanged, with the heads of a run or publication beside its own.

    The other's backbone must be the publication's, to the bit, but for running statistics: it began from there and was
    frozen. Its datasets become domains, with their statistics. Data, licences and metrics are those of both. which: of
    a run's checkpoints. domain: whose stem, statistics and input contract are the net's own (default: as they were).
    InputError names what differs, and a head or a domain that both have.
    """
    parse_destination(destination)
    own = published_contents(folder_of(source), with_heads=True)
    added = contents_of(other, which=which, domain=None, with_heads=True)
    contents = joined(own, added, names=(source, other))
    if domain is not None:
        contents = led_by(contents, domain)
    training = {**contents.training, **additions.to_training(own.training)}
    return export(
        replace(contents, training={**training, "reports": sorted(additions.reports)}),
        destination,
        precision=precision,
        name=name,
        pages=additions.reports,
        dry_run=dry_run,
    )


def joined(own: Contents, added: Contents, *, names: tuple[str, str]) -> Contents:
    """Return `own` with the heads and domains of `added`. names: of both, for messages."""
    if not added.heads:
        raise InputError(f"--heads-of {names[1]}: it has no heads; give a run, or a publication made with --heads")
    if both := sorted({*own.heads} & {*added.heads}):
        raise InputError(f"--heads-of {names[1]}: both have a head {both[0]!r}; publish {names[0]} without --heads")
    tensors, norm_domains, inputs = dict(own.extra_tensors), dict(own.norm_domains), dict(own.inputs)
    for domain, contract in _inputs_of(added).items():
        stem, extra = _as_domain(own, added, domain, names)
        if domain in own.norm_domains:
            mine = _tensors_of(own, domain)
            if any(not torch.equal(value, mine[key]) for key, value in extra.items()):
                raise InputError(
                    f"--heads-of {names[1]}: both have a domain {domain!r}, with other statistics; name the dataset "
                    "otherwise in its config"
                )
            continue
        tensors |= {f"{NORM_KEY}{domain}.{key}": value for key, value in extra.items()}
        norm_domains[domain], inputs[domain] = stem, contract
    known, theirs = own.training, added.training
    cards = list(known.get("data", []))
    cards += [card for card in theirs.get("data", []) if card["name"] not in {c["name"] for c in cards}]
    told = {"heads": list(added.heads), "steps": theirs.get("steps"), "metrics": theirs.get("metrics", {})}
    return replace(
        own,
        extra_tensors=tensors,
        norm_domains=norm_domains,
        inputs=inputs,
        heads={**own.heads, **added.heads},
        head_tensors={**own.head_tensors, **added.head_tensors},
        training={**known, "data": cards, "joined": [*known.get("joined", []), told]},
    )


def led_by(contents: Contents, domain: str) -> Contents:
    """Return the same contents with another domain's stem, statistics and input contract as the net's own."""
    inputs = _inputs_of(contents)
    before = (contents.input_spec or {}).get("domain")
    if domain not in inputs or before is None:
        raise unknown_name("domain", domain, inputs, where="--domain")
    if domain == before:
        return contents
    path = f"{first_conv_path(contents.net)}."
    stems = contents.norm_domains
    gone = (f"{NORM_KEY}{domain}.", f"{STEM_KEY}{stems[domain]}.")
    extra = {key: value for key, value in contents.extra_tensors.items() if not key.startswith(gone)}
    net = net_with(_tensors_of(contents, domain), contents.net, path.removesuffix("."))
    for key, value in contents.net.state_dict().items():
        if key.endswith(_STATISTICS):
            extra[f"{NORM_KEY}{before}.{key}"] = value
        elif key.startswith(path) and stems[before] != stems[domain]:
            extra[f"{STEM_KEY}{stems[before]}.{key.removeprefix(path)}"] = value
    others = {name: contract for name, contract in inputs.items() if name != domain}
    training = {**contents.training, "domain": domain}
    return replace(contents, net=net, input_spec=inputs[domain], inputs=others, extra_tensors=extra, training=training)


def _inputs_of(contents: Contents) -> dict[str, Any]:
    """The input contract of each domain; the net's own comes first."""
    spec = contents.input_spec or {}
    return {**({spec["domain"]: spec} if spec.get("domain") else {}), **contents.inputs}


def _as_domain(own: Contents, added: Contents, domain: str, names: tuple[str, str]) -> tuple[str, dict[str, Tensor]]:
    """Return the stem of a domain of `added` among those of `own`, and its statistics under timm's keys."""
    theirs, path = _tensors_of(added, domain), f"{first_conv_path(own.net)}."
    skipped = tuple(filter(None, (path, classifier_prefix(own.net))))
    mine = own.net.state_dict()
    colour_part = own.extra_tensors.get(COLOUR_KEY)
    stems = {stem: _tensors_of(own, other) for other, stem in own.norm_domains.items()}
    alike = [stem for stem, state in stems.items() if _is_stem_of(state, theirs, path, colour_part)]
    if not alike:
        raise _differs(names, f"{path}weight")
    extra = {}
    for key, value in theirs.items():
        if key.endswith(_STATISTICS):
            extra[key] = value
        elif key.startswith(skipped) or key.endswith(_COUNTER):
            continue
        elif key not in mine or not torch.equal(mine[key], value):
            raise _differs(names, key)
    return alike[0], extra


def _is_stem_of(
    one: Mapping[str, Tensor], other: Mapping[str, Tensor], prefix: str, colour_part: Tensor | None
) -> bool:
    """Whether a stem is another's, or that for another number of channels."""
    for key in (key for key in other if key.startswith(prefix)):
        mine, theirs = one.get(key), other[key]
        if mine is not None and key == f"{prefix}weight" and mine.shape[1] != theirs.shape[1]:
            mine = adapt_channels(mine, theirs.shape[1], colour_part)
        if mine is None or not torch.equal(mine, theirs):
            return False
    return True


def _differs(names: tuple[str, str], key: str) -> InputError:
    return InputError(
        f"--heads-of {names[1]}: its {key} is not that of {names[0]}; heads go along only with the backbone that they "
        "were trained on. Begin from that publication, and freeze it: model.freeze: {backbone: null}"
    )


def _tensors_of(contents: Contents, domain: str) -> dict[str, Tensor]:
    """Return the backbone's tensors under timm's keys, with the stem and statistics of one domain."""
    tensors = {**contents.net.state_dict(), **contents.extra_tensors}
    is_own = domain == (contents.input_spec or {}).get("domain")
    config = {"norm_domains": contents.norm_domains}
    places = domain_keys(list(tensors), config, None if is_own else domain, first_conv_path(contents.net))
    return {key: tensors[place] for key, place in places.items()}
