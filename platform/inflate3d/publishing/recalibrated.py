"""Running statistics of a publication's domains, computed again from unlabelled samples of its own datasets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import Split
from inflate3d.data.samples.views import make_stage
from inflate3d.data.stream.batches import TrainStream
from inflate3d.data.stream.mixture import Mixture
from inflate3d.errors import InputError, unknown_name
from inflate3d.models.create import build_net
from inflate3d.models.publication.load import domain_keys
from inflate3d.nn.recalibrate import batch_norms, recalibrating
from inflate3d.nn.stems import first_conv_path
from inflate3d.publishing.contents import Contents
from inflate3d.training.datamodule import DataModule, DatasetConfig

BATCH_SIZE, BATCHES = 16, 32
_SPLITS: tuple[Split, ...] = ("train", "val")
_STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Recalibration:
    """Which samples of which domain its statistics follow; labels are not read."""

    dataset: str
    split: Split = "train"

    @classmethod
    def parse(cls, text: str) -> Recalibration:
        """Read DATASET[:SPLIT]. InputError for another split than train or val."""
        dataset, colon, split = text.partition(":")
        if not colon:
            return cls(dataset)
        if split not in _SPLITS:
            raise InputError(
                f"--recalibrate {text}: unknown split {split!r}; allowed are {', '.join(_SPLITS)}: test samples are "
                "for measuring alone"
            )
        return cls(dataset, split)


def recalibrated(contents: Contents, wanted: Sequence[Recalibration], root: str) -> Contents:
    """Return contents whose statistics are the mean over 32 batches of 16 of each dataset; all else is unchanged.

    Samples are cut as in training (the contract's `sample`), without augmentation, in an order that is always the same.
    root: the folder of shards. InputError for a dataset that is no domain of the weights, or a net without running
    statistics.
    """
    spec = contents.input_spec or {}
    domains = [name for name in (spec.get("domain"), *contents.inputs) if name]
    if not batch_norms(contents.net):
        raise InputError("--recalibrate: this net has no running statistics (norm group, or none); leave it out")
    if contents.norm != "per_domain" and len(wanted) > 1:
        raise InputError(
            f"--recalibrate: norm {contents.norm} has one set of statistics for all datasets; name one dataset"
        )
    net, extra = copy.deepcopy(contents.net), dict(contents.extra_tensors)
    told: dict[str, Any] = {}
    for one in wanted:
        if one.dataset not in domains:
            raise unknown_name("domain", one.dataset, domains, where="--recalibrate")
        contract = spec if one.dataset == spec.get("domain") else contents.inputs[one.dataset]
        state, extra = _with_statistics(replace(contents, net=net, extra_tensors=extra), one, contract, root)
        net.load_state_dict(state)
        told[one.dataset] = {"split": one.split, "samples": BATCHES * BATCH_SIZE}
    training = {**contents.training, "metrics": {}, "recalibrated": told}
    return replace(contents, net=net, extra_tensors=extra, training=training)


def _with_statistics(
    contents: Contents, wanted: Recalibration, contract: Mapping[str, Any], root: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the net's state and the extra tensors with one domain's statistics replaced."""
    state, extra = dict(contents.net.state_dict()), dict(contents.extra_tensors)
    tensors = {**state, **extra}
    own = (contents.input_spec or {}).get("domain")
    path = first_conv_path(contents.net)
    other = None if wanted.dataset == own else wanted.dataset
    places = domain_keys(list(tensors), {"norm_domains": contents.norm_domains}, other, path)
    net = net_with({key: tensors[name] for key, name in places.items()}, contents.net, path)
    with recalibrating(net):
        for image in _images(wanted, contract, root):
            channels = net.net_spec.in_chans
            net(image.expand(-1, channels, -1, -1, -1) if image.shape[1] == 1 else image)
    for key, value in net.state_dict().items():
        if key.endswith(_STATISTICS):
            (state if places[key] in state else extra)[places[key]] = value
    return state, extra


def net_with(state: Mapping[str, Tensor], like: Any, stem_path: str) -> Any:
    """Return a net as `like`, of the same origin, with the stem's channels and the tensors of one domain."""
    channels = state[f"{stem_path}.weight"].shape[1]
    with torch.random.fork_rng(devices=[]):
        spec = replace(
            like.net_spec, in_chans=channels, num_classes=getattr(like, "num_classes", like.net_spec.num_classes)
        )
        net: nn.Module = build_net(spec, pretrained=False)
    net.load_state_dict(state)
    for told in ("published", "source_weights"):
        if hasattr(like, told):
            setattr(net, told, getattr(like, told))
    return net


def _images(wanted: Recalibration, contract: Mapping[str, Any], root: str) -> Iterator[Tensor]:
    """Yield batches (B, C, D, H, W) of a dataset's samples."""
    name, sample = wanted.dataset, dict(contract.get("sample") or {})
    data = DataModule(root, {name: DatasetConfig(BATCH_SIZE, sample=sample)}, seed=0).prepare()
    card = data.manifests[name].card
    if len(card.input.channels) not in (1, len(contract["channels"])):
        raise InputError(
            f"--recalibrate {name}: {data.shards_of(name)} has channels {list(card.input.channels)}; the weights "
            f"expect {list(contract['channels'])}. Give the shards that they were trained on: --root"
        )
    source = data.source(name, wanted.split)
    source.stage = make_stage(card, sample, training=True)
    source.batch_size = BATCH_SIZE
    batches = iter(TrainStream({name: source}, Mixture({name: 1.0})))
    return (next(batches).image for _ in range(BATCHES))
