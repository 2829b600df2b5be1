"""create_model: one call from any name to an inflated net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from inflate3d.contracts import find_zoo
from inflate3d.errors import InputError
from inflate3d.inflation import (
    AttentionName,
    Inflation,
    InflationPlan,
    NetInput,
    StatisticsName,
    TimePadding,
    inflate_in_place,
    resolve_plan,
)
from inflate3d.inflation.joint import JointAttention
from inflate3d.inflation.plan import as_triple
from inflate3d.models.input_contract import contract_of_2d
from inflate3d.models.layouts import KeptLayouts
from inflate3d.models.publication.fetch import published_folder
from inflate3d.models.publication.load import carried_inflation, load_published
from inflate3d.models.sources.timm_nets import build_timm, trace_sizes
from inflate3d.models.sources.torchvision_nets import build_torchvision
from inflate3d.models.sources.zoo_nets import build_zoo_net, contract_of_zoo, load_zoo_weights, own_spec
from inflate3d.models.spec import NetSpec


def create_model(
    name: str,
    pretrained: bool = False,
    *,
    inflation: str | Inflation = "center",
    overshoot: float = 0.25,
    plan: str | InflationPlan | dict[str, Any] = "auto",
    attention: AttentionName = "frame",
    statistics: StatisticsName = "clip",
    time_padding: TimePadding = "replicate",
    input_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    in_chans: int | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | int | None = None,
    global_pool: str | None = None,
    drop_path_rate: float = 0.0,
    cache_dir: str | None = None,
    norm_domain: str | None = None,
    head: str | None = None,
    **timm_kwargs: Any,
) -> nn.Module:
    """Return a net over clips and volumes (B, C, D, H, W), with timm's contract and timm's state_dict keys.

    name: any timm name ("resnet50.a1_in1k"), "torchvision/googlenet", published weights (a name of
    list_pretrained(), "hf-hub:org/name@revision", "https://host/dir", "s3://bucket/dir", "local-dir:path"), or a net
    of a zoo, with the 3D weights of other publishers ("medicalnet/resnet50").
    pretrained: for a 2D name its 2D weights, inflated; for a published one and a zoo's its 3D weights.
    inflation: mean | center | overshoot | random (see Taps); overshoot: its a. plan: auto | i3d | isotropic | slow |
    2d, or an InflationPlan; `auto` looks at input_size (D, H, W) and spacing_mm (z, y, x). attention: "frame", or
    "joint" for joint space-time attention in nets whose attention is scaled_dot_product_attention. statistics: what
    GroupNorm, GRN, squeeze-excite and their kin pool over, the "clip" (as 3D nets do) or each "frame". time_padding:
    past its ends a clip goes on as its first and last frame ("replicate"), as "zeros", or as zeros that are shared
    between both ends as TensorFlow does ("same"). These six words make an Inflation, which can be given whole:
    inflation=Inflation(...).
    in_chans: 3 unless given, or the published net's own; the stem is adapted from RGB as timm does.
    num_classes: the 2D net's own unless given; 0 gives pooled features (B, num_features).
    features_only: a list of (B, C_l, D_l, H_l, W_l), one a level. norm_domain: for a published net, whose running
    statistics (and stem) to take; head: whose classifier too. cache_dir: where downloads are kept (default:
    INFLATE3D_CACHE, then XDG_CACHE_HOME; the Hub's client and timm keep their own). Everything else is handed to
    timm.create_model as it is.

    `model.input_spec` says what input the weights expect, `model.label_names` what the published classes are called.

    Published weights and those of zoos carry their own inflation, overshoot, attention, statistics, time_padding and
    spacing_mm; pretrained=False takes others.

    Raises InputError for an unknown name (with close names) and for arguments that do not fit; InflationError, naming
    the layer, where a net cannot be inflated exactly.
    """
    given = Inflation.of(
        inflation,
        overshoot=overshoot,
        plan=plan,
        attention=attention,
        statistics=statistics,
        time_padding=time_padding,
    )
    options = _checked(
        in_chans=in_chans,
        num_classes=num_classes,
        features_only=features_only,
        out_indices=out_indices,
        global_pool=global_pool,
        drop_path_rate=drop_path_rate,
        timm_kwargs=timm_kwargs,
    )
    inputs = {"input_size": as_triple(input_size, "input_size"), "spacing_mm": as_triple(spacing_mm, "spacing_mm")}
    if (folder := published_folder(name, cache_dir)) is None:
        _refuse_published_arguments(name, norm_domain=norm_domain, head=head)
        if (own := own_spec(name)) is not None:
            contract = contract_of_zoo(name)
            value = carried_inflation(own, given, NetInput(*inputs.values()), contract, name, pretrained=pretrained)
            spec = replace(own, inflation=value, **options)
            net = _of_zoo(spec, contract, pretrained=pretrained, cache_dir=cache_dir)
            _check_joined(net, value)
            return net
        resolved = replace(given, plan=resolve_plan(given.plan, **inputs))
        net = build_net(NetSpec(name, resolved, **options), pretrained=pretrained, cache_dir=cache_dir)
        _check_joined(net, resolved)
        return net
    return load_published(
        folder,
        given,
        build=lambda spec: build_net(spec, pretrained=False),
        pretrained=pretrained,
        norm_domain=norm_domain,
        head=head,
        options=options,
        **inputs,
    )


def build_net(spec: NetSpec, *, pretrained: bool, cache_dir: str | None = None) -> nn.Module:
    """Build the 2D net of a spec and inflate it."""
    if find_zoo(spec.name) is not None:
        net = build_zoo_net(spec)
    elif spec.name.startswith("torchvision/"):
        net = build_torchvision(spec, pretrained=pretrained)
    else:
        net = build_timm(spec, pretrained=pretrained, cache_dir=cache_dir)
    sizes = trace_sizes(net, spec.timm_kwargs.get("img_size"))
    layouts = KeptLayouts.of(spec, pretrained=pretrained, cache_dir=cache_dir)
    net = inflate_in_place(net, spec.inflation, trace_sizes=sizes, in_chans=spec.in_chans, layouts=layouts)
    net.net_spec, net.is_from_2d_weights = spec, pretrained  # type: ignore[assignment]
    net.input_spec, net.label_names = contract_of_2d(net, spec.in_chans), []  # type: ignore[assignment]
    return net


def _of_zoo(spec: NetSpec, contract: dict[str, Any], *, pretrained: bool, cache_dir: str | None) -> nn.Module:
    """Build a zoo's net; with its weights comes what input they expect."""
    net = build_net(spec, pretrained=False)
    if pretrained:
        load_zoo_weights(net, spec, cache_dir=cache_dir)
        net.input_spec = {**net.input_spec, **contract}  # type: ignore[assignment, dict-item]
    return net


def _check_joined(net: nn.Module, inflation: Inflation) -> None:
    """InputError where joint attention was asked for and no layer can join frames: nothing would say so later."""
    if inflation.attention == "joint" and not any(isinstance(module, JointAttention) for module in net.modules()):
        raise InputError(
            "attention='joint' joins the frames of a clip in scaled_dot_product_attention, which no layer of this net "
            "calls; take attention='frame', or a net with attention: platform models list '*vit*'"
        )


def _checked(**options: Any) -> dict[str, Any]:
    """Return the options that were given. InputError for counts that cannot be."""
    in_chans, num_classes = options["in_chans"], options["num_classes"]
    if in_chans is not None and in_chans < 1:
        raise InputError(f"in_chans is {in_chans}; a net takes at least 1 channel")
    if num_classes is not None and num_classes < 0:
        raise InputError(f"num_classes is {num_classes}; give 0 for pooled features or the number of classes")
    return {k: v for k, v in options.items() if v is not None}


def _refuse_published_arguments(name: str, **arguments: str | None) -> None:
    for argument, value in arguments.items():
        if value is not None:
            raise InputError(f"{argument}={value!r} is for published weights; {name!r} is a 2D net's name")
