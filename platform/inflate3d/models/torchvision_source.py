"""2D nets and weights from torchvision, under names such as "torchvision/googlenet"."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.models import FeatureHookNet, adapt_input_conv
from torch import nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.mixing import Mixin, mix
from inflate3d.models.spec import NetSpec

PREFIX = "torchvision/"


def build_torchvision(spec: NetSpec, *, pretrained: bool) -> nn.Module:
    """Return torchvision's 2D classifier for a spec; auxiliary heads are dropped."""
    from torchvision import models

    name = spec.name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("model", spec.name, [PREFIX + k for k in known], see=f"platform models list '{PREFIX}*'")
    kwargs: dict[str, Any] = dict(spec.timm_kwargs)
    if name in ("googlenet", "inception_v3"):
        kwargs.setdefault("init_weights", not pretrained)
        if not pretrained:
            kwargs.setdefault("aux_logits", False)
    net = models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    if getattr(net, "aux_logits", False):
        net.aux_logits, net.aux1, net.aux2 = False, None, None
    _adapt_stem(net, spec.in_chans)
    _give_contract(net)
    if spec.num_classes is not None and not spec.features_only:
        net.reset_classifier(spec.num_classes)
    if spec.features_only:
        count = len(net.feature_info)  # type: ignore[arg-type]
        indices = spec.out_indices if spec.out_indices is not None else tuple(range(count))
        return FeatureHookNet(net, out_indices=indices)  # type: ignore[arg-type]
    return net


class LinearClassifier(Mixin):
    """get_classifier and reset_classifier for a net whose last Linear classifies."""

    classifier_name: str

    def get_classifier(self) -> nn.Module:
        """Return the last Linear (or the Identity in its place)."""
        return self.get_submodule(self.classifier_name)  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place; 0 gives pooled features."""
        if global_pool not in (None, "avg"):
            raise InputError(f"global_pool is {global_pool!r}; torchvision's nets pool as they are built")
        fresh = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()  # type: ignore[attr-defined]
        self.set_submodule(self.classifier_name, fresh)  # type: ignore[attr-defined]
        self.num_classes = num_classes


def _give_contract(net: nn.Module) -> None:
    linears = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not linears:
        raise InputError(f"{type(net).__name__} has no Linear classifier; inflate it yourself with inflate3d.inflate")
    net.classifier_name, last = linears[-1]  # type: ignore[assignment]
    net.num_features, net.num_classes = last.in_features, last.out_features  # type: ignore[assignment]
    net.feature_info = _feature_info(net)  # type: ignore[assignment]
    mix(net, LinearClassifier)


def _feature_info(net: nn.Module) -> list[dict[str, Any]]:
    """One entry a level: the last of the outermost modules whose map has that level's size."""
    outermost: dict[str, tuple[int, int]] = {}
    size = 224

    def record(name: str) -> Any:
        def hook(_m: nn.Module, _i: Any, y: Any) -> None:
            if isinstance(y, torch.Tensor) and y.ndim == 4 and y.shape[-1] > 1:
                outermost[name] = (round(math.log2(size / y.shape[-1])), y.shape[1])

        return hook

    modules = [(n, m) for n, m in net.named_modules() if n and n.count(".") <= n.startswith("features.")]
    handles = [m.register_forward_hook(record(n)) for n, m in modules if n != "features"]
    channels = next(m for m in net.modules() if isinstance(m, nn.Conv2d)).in_channels
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, channels, size, size))
    net.train(training)
    for handle in handles:
        handle.remove()
    last_of = {level: (name, chs) for name, (level, chs) in outermost.items() if level > 0}
    return [{"num_chs": c, "reduction": 2**level, "module": n} for level, (n, c) in sorted(last_of.items())]


def _adapt_stem(net: nn.Module, in_chans: int) -> None:
    if in_chans == 3:
        return
    stem = next(m for m in net.modules() if isinstance(m, nn.Conv2d))
    stem.weight = nn.Parameter(adapt_input_conv(in_chans, stem.weight.data))
    stem.in_channels = in_chans
    if getattr(net, "transform_input", False):
        net.transform_input = False  # type: ignore[assignment]  # its constants are for RGB
