"""Into other tools: MONAI's axes and FlexibleUNet, nnU-Net's plans, the Hub's own mixin. Examples: docs/adapters.md."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin
from torch import Tensor, nn

from inflate3d.errors import InputError
from inflate3d.models import create_model, create_segmenter
from inflate3d.models.publication.layout import PREFIX
from inflate3d.models.publication.places import HUB
from inflate3d.publishing import publish


class MonaiAxes(nn.Module):
    """A net over MONAI's axes: (B, C, X, Y, Z) -> what the net gives, its maps (B, K, X', Y', Z') too.

    MONAI keeps the axes of NIfTI files; ours are (D, H, W) = (Z, Y, X). For any net or segmenter of inflate3d, such as
    in monai.inferers.sliding_window_inference.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BCXYZ: Tensor) -> Any:
        """Answer a volume; vectors (logits, pooled features) come as they are."""
        return _turned(self.net(x_BCXYZ.transpose(2, 4)))


def register_flexible_unet(name: str, pretrained: bool = False, **kwargs: Any) -> str:
    """Register an encoder with MONAI and return `name`: FlexibleUNet(..., backbone=name, spatial_dims=3).

    name, pretrained, kwargs: as create_model's. in_channels comes from FlexibleUNet; its own `pretrained` is ignored.
    InputError unless the maps are 2, 4, 8, ... times smaller along all three axes, which MONAI's decoder takes.
    """
    from monai.networks.nets import flexible_unet

    options = {"plan": "isotropic", **kwargs} if not pretrained else kwargs
    info: Any = create_model(name, features_only=True, **{**options, "pretrained": pretrained}).feature_info
    reductions = info.reduction_dhw()[:5]
    if any(r != (2 ** (i + 1),) * 3 for i, r in enumerate(reductions)):
        raise InputError(
            f"{name!r} has maps reduced by {reductions}; MONAI's FlexibleUNet wants 2, 4, 8, ... along each axis. "
            "Take plan='isotropic' and a net with maps from /2 on, such as a ResNet; or create_segmenter and MonaiAxes"
        )

    class Encoder(nn.Module, flexible_unet.BaseEncoder):
        """An inflate3d encoder, built as FlexibleUNet asks for it."""

        def __init__(self, spatial_dims: int, in_channels: int, pretrained: bool) -> None:
            super().__init__()
            if spatial_dims != 3:
                raise InputError(f"{name!r} is a 3D encoder; spatial_dims is {spatial_dims}, give 3")
            self.net = MonaiAxes(create_model(name, _pretrained, features_only=True, in_chans=in_channels, **options))

        def forward(self, x_BCXYZ: Tensor) -> list[Tensor]:
            """Return the maps, shallow to deep."""
            return self.net(x_BCXYZ)[: len(reductions)]

        @classmethod
        def get_encoder_parameters(cls) -> list[dict[str, Any]]:
            """What FlexibleUNet fills in."""
            return [{"spatial_dims": 3, "in_channels": 3, "pretrained": False}]

        @classmethod
        def num_channels_per_output(cls) -> list[tuple[int, ...]]:
            """Channels of each map."""
            return [tuple(info.channels()[: len(reductions)])]

        @classmethod
        def num_outputs(cls) -> list[int]:
            """How many maps there are."""
            return [len(reductions)]

        @classmethod
        def get_encoder_names(cls) -> list[str]:
            """The name that FlexibleUNet is given."""
            return [name]

    _pretrained = pretrained
    flexible_unet.FLEXUNET_BACKBONE.register_class(Encoder)
    return name


def nnunet_network(
    input_channels: int, num_classes: int, *, name: str, deep_supervision: bool = False, **kwargs: Any
) -> nn.Module:
    """Return a segmenter as nnU-Net builds networks: its plans name this function and give `name` and kwargs.

    nnU-Net's axes are (B, C, D, H, W) as ours. kwargs: as create_segmenter's (pretrained, plan, ...). For trainers
    without deep supervision, such as nnUNetTrainerNoDeepSupervision; InputError for others.
    """
    if deep_supervision:
        raise InputError(f"{name!r} answers at full size alone; train with -tr nnUNetTrainerNoDeepSupervision")
    return create_segmenter(name, num_classes=num_classes, in_chans=input_channels, **kwargs)


class HubModel(nn.Module, ModelHubMixin, library_name="inflate3d"):
    """A net with the Hub's usual methods: from_pretrained, save_pretrained and push_to_hub, over published directories.

    HubModel(net).push_to_hub("org/name"); HubModel.from_pretrained("org/name", num_classes=5).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x_BCDHW: Tensor) -> Any:
        """Answer as the net does."""
        return self.net(x_BCDHW)

    def _save_pretrained(self, save_directory: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            publish(self.net, str(Path(folder) / "weights"))
            shutil.copytree(Path(folder) / "weights", save_directory, dirs_exist_ok=True)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **kwargs: Any,
    ) -> HubModel:
        for own in ("config", "net"):  # the mixin fills __init__'s arguments from config.json, whose `net` is another
            kwargs.pop(own, None)
        if Path(model_id).is_dir():
            name = f"{PREFIX}{model_id}"
        else:
            name = f"{HUB}{model_id}" + (f"@{revision}" if revision else "")
        return cls(create_model(name, True, cache_dir=None if cache_dir is None else str(cache_dir), **kwargs))


def _turned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.transpose(2, 4) if value.ndim == 5 else value
    return [_turned(v) for v in value]
