"""Norms over unlike datasets: running statistics for each domain, frozen ones, or GroupNorm."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from timm.layers import GroupNormAct
from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.call import telling, told
from inflate3d.inflation.mixing import Mixin, mix

NormName = Literal["per_domain", "shared", "frozen", "group"]
NORMS: tuple[NormName, ...] = get_args(NormName)


class Domain:
    """The domains (datasets) that a net serves; which of them a forward serves is told to its layers (see call.py)."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def serving(self, name: str) -> telling:
        """Tell the layers that run inside to serve this domain. Raises InputError for an unknown one."""
        if name not in self.names:
            raise unknown_name("domain", name, self.names, where="norm_domain")
        return telling("domain", self.names.index(name))

    @property
    def index(self) -> int:
        """The place of the domain that is served here; of several, one must have been told."""
        index: int | None = told("domain")
        if index is None and len(self.names) > 1:
            raise InputError(f"no domain is served here; give forward(image, domain=...) one of {self.names}")
        return index or 0


class DomainNorm(Mixin):
    """A BatchNorm with running statistics for each domain and one affine for all; batch statistics are as ever.

    State: domain_mean and domain_var (domains, C) in place of running_mean and running_var.
    """

    prefix = "Domain"
    domain: Domain
    domain_mean: Tensor
    domain_var: Tensor

    def make_domains(self, count: int) -> None:
        """Give every domain the statistics that the layer has now."""
        for name in ("mean", "var"):
            own: Tensor = getattr(self, f"running_{name}")
            self.register_buffer(f"domain_{name}", own.detach().expand(count, -1).clone())  # type: ignore[attr-defined]
            self._non_persistent_buffers_set.add(f"running_{name}")  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own, on the statistics of the active domain."""
        index = self.domain.index
        # The layer's own forward runs on a stand-in, which no other forward sees. Its statistics are views: what is
        # updated in place lands in the row of its domain.
        rows = {"running_mean": self.domain_mean[index], "running_var": self.domain_var[index]}
        stand_in = object.__new__(type(self))
        stand_in.__dict__ = {**self.__dict__, "_buffers": {**self._buffers, **rows}}  # type: ignore[attr-defined]
        return super(DomainNorm, stand_in).forward(x)  # type: ignore[misc]


def convert_norms(net: nn.Module, norm: NormName, domain: Domain) -> None:
    """Turn every BatchNorm of a net, in place, into what `norm` says; `shared` and `frozen` keep the layers."""
    for name, module in list(net.named_modules()):
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if norm == "per_domain" and module.track_running_stats:
            mix(module, DomainNorm)
            module.domain = domain  # type: ignore[assignment]
        elif norm == "group":
            net.set_submodule(name, group_norm_like(module))


def group_norm_like(norm: Any) -> nn.Module:
    """Return a GroupNorm with a BatchNorm's affine (and activation, for timm's fused ones)."""
    channels = norm.num_features
    groups = next(g for g in range(min(32, max(1, channels // 8)), 0, -1) if channels % g == 0)
    if hasattr(norm, "act"):
        fresh: Any = GroupNormAct(channels, num_groups=groups, eps=norm.eps)
        fresh.act, fresh.drop = norm.act, norm.drop
    else:
        fresh = nn.GroupNorm(groups, channels, eps=norm.eps)
    with torch.no_grad():
        fresh.weight.copy_(norm.weight)
        fresh.bias.copy_(norm.bias)
    return fresh.to(norm.weight.device, norm.weight.dtype)
