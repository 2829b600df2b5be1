"""2D nets and weights from torchvision, under names such as "torchvision/googlenet"."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import FeatureHookNet, adapt_input_conv
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.mixing import Mixin, mix
from inflate3d.models.spec import NetSpec

PREFIX = "torchvision/"
LOOK_SIZE, OTHER_SIZE = 224, 96  # what each of them takes, and what most do


def build_torchvision(spec: NetSpec, *, pretrained: bool) -> nn.Module:
    """Return torchvision's 2D classifier for a spec, with timm's contract; auxiliary heads are dropped."""
    from torchvision import models

    name = spec.name.removeprefix(PREFIX)
    known = models.list_models(module=models)
    if name not in known:
        raise unknown_name("model", spec.name, [PREFIX + k for k in known], see=f"platform models list '{PREFIX}*'")
    if spec.global_pool not in (None, "avg"):
        raise _fixed_pool(spec.global_pool)
    kwargs: dict[str, Any] = dict(spec.timm_kwargs)
    if name in ("googlenet", "inception_v3"):
        kwargs.setdefault("init_weights", not pretrained)
        if not pretrained:
            kwargs.setdefault("aux_logits", False)
    try:
        net = models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    except OSError as error:  # urllib's, too
        raise InputError(
            f"the 2D weights of {spec.name!r} cannot be fetched ({type(error).__name__}: {str(error)[:160]}). "
            "Put them where torch.hub keeps them ($TORCH_HOME/hub/checkpoints), or take pretrained=False"
        ) from error
    if getattr(net, "aux_logits", False):
        net.aux_logits = False
        for head in ("aux1", "aux2", "AuxLogits"):
            if hasattr(net, head):
                setattr(net, head, None)
    _adapt_stem(net, spec.in_chans)
    give_contract(net)
    if spec.features_only:
        return feature_net(net, spec)
    if spec.num_classes is not None:
        net.reset_classifier(spec.num_classes)
    return net


class Classifier(Mixin):
    """get_classifier and reset_classifier for a net whose last Linear (or 1x1 convolution) classifies."""

    classifier_name: str

    def get_classifier(self) -> nn.Module:
        """Return the last Linear or 1x1 convolution (or the Identity in its place)."""
        return self.get_submodule(self.classifier_name)  # type: ignore[attr-defined]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh classifier in place; 0 gives pooled features."""
        if global_pool not in (None, "avg"):
            raise _fixed_pool(global_pool)
        fresh: nn.Module = nn.Identity()
        if num_classes:
            width = self.num_features  # type: ignore[attr-defined]
            fresh = nn.Conv2d(width, num_classes, 1) if self.classifies_maps else nn.Linear(width, num_classes)  # type: ignore[attr-defined]
        self.set_submodule(self.classifier_name, fresh)  # type: ignore[attr-defined]
        self.num_classes = num_classes


class _Passing:
    """The maps of the levels during one forward; None else."""

    maps: dict[str, Tensor] | None = None


@dataclass
class _Keep:
    """A forward hook that keeps a map while somebody wants it; a class, so that nets with it are copied and pickled."""

    passing: _Passing
    name: str

    def __call__(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        """Keep the map."""
        if self.passing.maps is not None:
            self.passing.maps[self.name] = output


class FeatureClassifier(Classifier):
    """forward_features, forward_head and forward_intermediates too, for nets that are a trunk, a pool and a head."""

    passing: _Passing

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map before the pool: (N, C, H, W)."""
        return self._maps(x, [])[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a last map and classify it; `pre_logits` gives the classifier's input."""
        x = self.avgpool(x) if hasattr(self, "avgpool") else nn.functional.adaptive_avg_pool2d(x, 1)
        head: Any = getattr(self, self.classifier_name.partition(".")[0])
        layers = list(head) if isinstance(head, nn.Sequential) else [head]
        x = x.flatten(1) if isinstance(layers[0], nn.Dropout | nn.Linear | nn.Identity) else x
        for layer in [*([self.dropout] if hasattr(self, "dropout") else []), *layers[: -1 if pre_logits else None]]:
            x = layer(x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return (last map, maps), as timm's; `norm` and `stop_early` change nothing here."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}; torchvision's maps come as NCHW")
        taken, _ = feature_take_indices(len(self._modules_of_levels()), indices)
        *maps, last = self._maps(x, taken)
        return maps if intermediates_only else (last, maps)

    def _maps(self, x: Tensor, taken: Sequence[int]) -> list[Tensor]:
        """Return the maps of the levels taken, and the last one."""
        modules = self._modules_of_levels()
        names = [*(modules[index] for index in taken), modules[-1]]
        self.passing.maps = {}
        super().forward(x)  # type: ignore[misc]
        maps = [self.passing.maps[name] for name in names]
        self.passing.maps = None
        return maps

    def _modules_of_levels(self) -> list[str]:
        info: Any = self.feature_info  # type: ignore[attr-defined]
        return [entry["module"] for entry in getattr(info, "info", info)]


@contextmanager
def _captured(net: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Collect what the named modules give while the body of the `with` runs; the net itself stays as it is."""
    outputs: dict[str, Any] = {}

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.update({name: output})

    handles = [net.get_submodule(name).register_forward_hook(hook(name)) for name in dict.fromkeys(names)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def give_contract(net: Any) -> None:
    """Give a trunk with a pool and a last Linear (or 1x1 convolution) timm's contract, by what a forward shows."""
    layers = [(n, m) for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    net.classifier_name, last = layers[-1]
    net.classifies_maps = isinstance(last, nn.Conv2d)
    net.num_features = last.in_channels if net.classifies_maps else last.in_features
    net.num_classes = last.out_channels if net.classifies_maps else last.out_features
    net.feature_info, net.output_fmt = _feature_info(net)
    is_fixed, is_split = _look_at_head(net)
    size = (_stem(net).in_channels, LOOK_SIZE, LOOK_SIZE)
    norm = dict(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
    net.pretrained_cfg = {"input_size": size, "fixed_input_size": is_fixed, **norm}
    mix(net, FeatureClassifier if is_split else Classifier)
    if is_split:  # hooks that stay: one that comes and goes in each forward cannot be compiled
        net.passing = _Passing()
        for entry in net.feature_info:
            net.get_submodule(entry["module"]).register_forward_hook(_Keep(net.passing, entry["module"]))


def _look_at_head(net: Any) -> tuple[bool, bool]:
    """Return (whether the net takes one image size alone, whether FeatureClassifier's head on its last map is it)."""
    names = [net.feature_info[-1]["module"]] if net.feature_info else []
    training, is_fixed = net.training, False
    net.eval()
    with torch.no_grad(), _captured(net, names) as outputs:
        try:  # a size unlike the usual one, so that a head that knows only that one shows
            logits = net(_image(net, OTHER_SIZE))
        except (RuntimeError, AssertionError):
            logits, is_fixed = net(_image(net, LOOK_SIZE)), True
        try:
            again = FeatureClassifier.forward_head(net, outputs[names[0]])
            is_split = torch.allclose(again, logits, rtol=1e-4, atol=1e-5)
        except (RuntimeError, IndexError):
            is_split = False
    net.train(training)
    return is_fixed, is_split


def _image(net: nn.Module, size: int) -> Tensor:
    return torch.randn(1, _stem(net).in_channels, size, size, generator=torch.Generator().manual_seed(0))


def _feature_info(net: Any) -> tuple[list[dict[str, Any]], str]:
    """One entry a level, and the maps' format: the last map of that level's size, of the outermost modules."""
    head = net.classifier_name.partition(".")[0]
    containers = {n for n, m in net.named_children() if isinstance(m, nn.Sequential | nn.ModuleList)}
    names = [
        n
        for n, m in net.named_modules()
        if n and n.partition(".")[0] != head and n.count(".") <= (n.partition(".")[0] in containers)
        if not isinstance(m, nn.ModuleList | nn.AdaptiveAvgPool2d)
    ]
    training = net.training
    with torch.no_grad(), _captured(net, names) as outputs:
        net.eval()(_image(net, LOOK_SIZE))
    net.train(training)
    maps = {n: y.shape[1:] for n, y in outputs.items() if isinstance(y, Tensor) and y.ndim == 4}
    formats = {n: "NHWC" if s[0] == s[1] != s[2] else "NCHW" for n, s in maps.items() if s[1] > 1}
    output_fmt = max(formats.values(), default="NCHW")  # Swin's maps but for its last, which is brought to NCHW
    last_of: dict[int, dict[str, Any]] = {}
    for name in (n for n, fmt in formats.items() if fmt == output_fmt):
        height, channels = (maps[name][i] for i in ((0, 2) if output_fmt == "NHWC" else (1, 0)))
        level = round(math.log2(LOOK_SIZE / height))
        last_of[level] = {"num_chs": channels, "reduction": 2**level, "module": name}
    levels = [last_of[level] for level in sorted(last_of)]
    return (levels if len(levels) > 1 else []), output_fmt  # a ViT's patch embed alone is no feature map


def feature_net(net: Any, spec: NetSpec) -> nn.Module:
    """Return a net with feature_info as timm's features_only nets are, without its head."""
    if not net.feature_info:
        raise InputError(f"{spec.name!r} gives no feature maps: it has tokens only; timm's ViTs give maps of them")
    if hasattr(net, "classifier_name"):
        net.classifier_name = net.classifier_name.partition(".")[0]  # timm's feature net resets it: the whole head goes
    indices: Any = spec.out_indices if spec.out_indices is not None else len(net.feature_info)
    taken, _ = feature_take_indices(len(net.feature_info), indices)
    features: Any = FeatureHookNet(net, out_indices=tuple(taken), output_fmt=getattr(net, "output_fmt", "NCHW"))
    features.pretrained_cfg = net.pretrained_cfg
    return features


def _fixed_pool(given: str) -> InputError:
    return InputError(f"global_pool is {given!r}; torchvision's nets pool as they are built: leave it out")


def _stem(net: nn.Module) -> nn.Conv2d:
    return next(m for m in net.modules() if isinstance(m, nn.Conv2d))


def _adapt_stem(net: nn.Module, in_chans: int) -> None:
    if in_chans == 3:
        return
    stem = _stem(net)
    stem.weight = nn.Parameter(adapt_input_conv(in_chans, stem.weight.data))
    stem.in_channels = in_chans
    if getattr(net, "transform_input", False):
        net.transform_input = False  # type: ignore[assignment]  # its constants are for RGB
