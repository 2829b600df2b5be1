"""The training backbone: one inflated net that serves unlike datasets, by stems and norms of their own."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.contracts import DatasetCard, Features
from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation import InflationPlan
from inflate3d.models.backbone_config import BackboneConfig
from inflate3d.models.beginnings import beginnings
from inflate3d.models.create import create_model
from inflate3d.models.levels import Intermediates, distinct_levels
from inflate3d.models.spec import NetSpec
from inflate3d.nn.domain import NORMS, Domain, convert_norms
from inflate3d.nn.stems import COLOUR_PART, StemSwitch, adapt_channels, colour_part_of, first_conv_path

_log = logging.getLogger("inflate3d")


class Backbone(nn.Module):
    """An inflated net over named domains (datasets): forward(image, domain=...) -> Features.

    `setup_domains` comes once, before training and before loading a checkpoint; it makes the stems and the statistics.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        if config.norm not in NORMS:
            raise unknown_name("norm", str(config.norm), NORMS, where="model.backbone.norm")
        if config.stems is not None and not config.stems:
            raise InputError("model.backbone.stems is empty; give a kind of input ({rgb: 3}) or null for one stem")
        self.config = config
        self.net = _create(config)
        if not hasattr(self.net, "forward_intermediates"):
            raise InputError(
                f"model.backbone.name: {config.name!r} gives no intermediate maps (timm's forward_intermediates), "
                "which the heads need; take a timm name: platform models list"
            )
        self.domain = Domain()
        self.map_indices, self.feature_info = distinct_levels(self.net)
        self.intermediates = Intermediates(self.net, self.map_indices)

    def check_trained_with(self, net: Mapping[str, Any]) -> None:
        """InputError where weights come from a net with another plan: strides along D leave no trace in their shapes.

        net: as NetSpec.to_dict gave it.
        """
        own: InflationPlan = self.net.plan  # type: ignore[assignment]
        trained = NetSpec.from_dict(net).inflation.laid
        if replace(trained, name=own.name) != own:
            raise InputError(
                f"model.backbone.plan: these weights were trained with plan {trained}; this net has plan {own}. "
                f"Give theirs: model.backbone.plan: {trained.to_dict()}"
            )

    def setup_domains(self, cards: Mapping[str, DatasetCard]) -> None:
        """Make a stem for each kind of input and statistics for each dataset. InputError where channels do not fit.

        Of published weights each dataset begins with the stem and statistics of the domain that is like it,
        unless timm_kwargs says norm_domain.
        """
        assert not self.domain.names, "setup_domains comes once"
        stem_of = {name: self._stem_name(name, card) for name, card in cards.items()}
        if self.config.stems is not None:
            StemSwitch.install(self.net, self.config.stems, stem_of, self.domain, colour_part=self._colour_part())
        convert_norms(self.net, self.config.norm, self.domain)
        self.domain.names = list(cards)
        for module in self.net.modules():
            if hasattr(module, "make_domains"):
                module.make_domains(len(cards))  # type: ignore[operator]
        if self.config.pretrained and "norm_domain" not in self.config.timm_kwargs:
            self._begin_as(beginnings(self.config.name, cards), stem_of)
        self.train(self.training)  # a fresh module trains without being told to, and so would frozen norms

    def _begin_as(self, domain_of: Mapping[str, str], stem_of: Mapping[str, str]) -> None:
        """Take stems and statistics from domains of the published weights: what serves several datasets, if they agree.

        stem_of: the stem of each dataset, "" where there is one for all.
        """
        with torch.random.fork_rng(devices=[]):  # heads begin as if there were no donors
            donors = {domain: _create(self.config, norm_domain=domain) for domain in dict.fromkeys(domain_of.values())}
        if not donors:
            return
        path = first_conv_path(next(iter(donors.values())))
        switch = self.stem_switch
        for stem in dict.fromkeys(stem_of.values()):
            domain = _agreed(domain_of.get(dataset) for dataset, own in stem_of.items() if own == stem)
            if domain is not None:
                own = self.net.get_submodule(path) if switch is None else switch[stem]
                _copy_stem(donors[domain].get_submodule(path), own)
        alone = _agreed(map(domain_of.get, self.domain.names)) is not None
        for dataset, domain in domain_of.items():
            _copy_statistics(donors[domain], self.net, self.domain.names.index(dataset), alone=alone)
            _log.info("%s begins with the stem and statistics of %r of %s", dataset, domain, self.config.name)

    def forward(self, image_BCDHW: Tensor, *, domain: str) -> Features:
        """Return the feature maps and the pooled vector of a batch from one dataset."""
        if self.config.stems is None and image_BCDHW.shape[1] == 1 and self.in_chans > 1:
            image_BCDHW = image_BCDHW.expand(-1, self.in_chans, -1, -1, -1)
        with self.domain.serving(domain):
            final, maps = self.intermediates(image_BCDHW)
            pooled = self.net.forward_head(final, pre_logits=True)  # type: ignore[operator]
        return Features(maps, pooled, tuple(image_BCDHW.shape[2:]))  # type: ignore[arg-type]

    @property
    def stem_switch(self) -> StemSwitch | None:
        """The switch over stems, where the config names stems."""
        return next((m for m in self.net.modules() if isinstance(m, StemSwitch)), None)

    @property
    def in_chans(self) -> int:
        """Channels of the net's own stem."""
        return int(self.net.net_spec.in_chans)  # type: ignore[union-attr, arg-type]

    def minimal_features(self, batch_size: int = 1) -> Features:
        """Return the smallest constant features that a head can run on: what idle heads are given."""
        like = next(self.parameters())
        maps = [like.new_zeros(batch_size, c, 2, 2, 2) for c in self.feature_info.channels()]
        return Features(maps, like.new_zeros(batch_size, self.feature_info.num_pooled), (2, 2, 2))

    def _colour_part(self) -> Tensor | None:
        """What pretrained weights tell apart between colours: as a publication has it, or the own stem of RGB."""
        if not self.config.pretrained:
            return None
        if hasattr(self.net, COLOUR_PART):
            return self.net.colour_part  # type: ignore[return-value]
        return colour_part_of(self.net.get_submodule(first_conv_path(self.net)).weight)  # type: ignore[arg-type]

    def frozen_copy(self) -> Backbone:
        """Return a copy, called as this one, in evaluation mode and without gradients; its statistics stay its own."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode; `norm: frozen` keeps every BatchNorm in evaluation."""
        super().train(mode)
        if self.config.norm == "frozen":
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _stem_name(self, dataset: str, card: DatasetCard) -> str:
        channels = len(card.input.channels)
        where = f"data.datasets.{dataset}"
        if self.config.stems is None:
            if channels not in (1, self.in_chans):
                raise InputError(
                    f"{where}: {channels} channels {list(card.input.channels)}, but the backbone's stem takes "
                    f"{self.in_chans} (or 1, repeated). Give it a stem: model.backbone.stems: "
                    f"{{{card.modality}: {channels}}}"
                )
            return ""
        stems = self.config.stems
        if card.modality not in stems:
            raise unknown_name("stem", card.modality, stems, where=f"{where}: modality; model.backbone.stems")
        if stems[card.modality] != channels:
            raise InputError(
                f"model.backbone.stems.{card.modality} is {stems[card.modality]}, but {where} has {channels} channels "
                f"{list(card.input.channels)}. Set it to {channels}, or leave the dataset out"
            )
        return card.modality


def _create(config: BackboneConfig, **options: Any) -> nn.Module:
    return create_model(
        config.name,
        config.pretrained,
        inflation=config.inflation,
        input_size=config.input_size,
        spacing_mm=config.spacing_mm,
        num_classes=0,
        drop_path_rate=config.drop_path_rate,
        **options,
        **config.timm_kwargs,
    )


def _agreed(domains: Iterable[str | None]) -> str | None:
    """Return the domain that all name; None where they do not agree."""
    found = set(domains)
    return found.pop() if len(found) == 1 else None


def _copy_stem(source: Any, target: Any) -> None:
    """Give a stem another's kernel, for its own channels."""
    target.weight.data.copy_(adapt_channels(source.weight.detach(), target.weight.shape[1]))
    if target.bias is not None:
        target.bias.data.copy_(source.bias)


def _copy_statistics(source: nn.Module, target: nn.Module, index: int, *, alone: bool) -> None:
    """Give the domain at `index` another net's running statistics; one set for all domains only where they agree."""
    theirs = dict(source.named_modules())
    for name, module in target.named_modules():
        for kind in ("mean", "var"):
            value = getattr(theirs.get(name), f"running_{kind}", None)
            if isinstance(value, Tensor) and hasattr(module, f"domain_{kind}"):
                getattr(module, f"domain_{kind}")[index].copy_(value)
            elif isinstance(value, Tensor) and alone and isinstance(getattr(module, f"running_{kind}", None), Tensor):
                getattr(module, f"running_{kind}").copy_(value)
