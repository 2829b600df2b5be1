"""Maps of an inflated net shown as clips (B, C, D', H', W') to hooks, of which layers inside see frames alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from inflate3d.errors import InputError, unknown_name
from inflate3d.inflation.layers import clip_told
from inflate3d.inflation.mixing import Mixin, mix

PLACE = "shown"


class ShowsMap(Mixin):
    """A module whose map passes a place for hooks, as a clip, on its way out."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the module's own: (B*D', C, H', W')."""
        y = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not isinstance(y, Tensor) or y.ndim != 4:
            raise InputError(f"{type(self).__name__} gives no map (B*D', C, H', W') that could be shown as a clip")
        clip = clip_told(type(self).__name__)
        frames = 1 if clip.is_empty else y.shape[0] // clip.batch_size
        y_BCDHW = y.unflatten(0, (-1, frames)).transpose(1, 2)
        return self.shown_at[0](y_BCDHW).transpose(1, 2).flatten(0, 1)  # type: ignore[attr-defined]


def show_map(net: nn.Module, name: str) -> str:
    """Make a place where hooks see the map of the module `name` as (B, C, D', H', W'); return the place's own name.

    For tools that hook a layer and expect the input's five axes (GradCAM, feature extractors):
    `GradCAM(nn_module=net, target_layers=show_map(net, "layer3"))`. What the net computes and its state_dict stay.
    Raises InputError for a module that is not there.
    """
    modules = dict(net.named_modules())
    if name not in modules or not name:
        raise unknown_name("module", name, [n for n in modules if n])
    if not hasattr(net, PLACE):
        net.add_module(PLACE, nn.ModuleDict())
    places: Any = getattr(net, PLACE)
    key = name.replace(".", "_")
    if key not in places:
        places[key] = nn.Identity()
        module: Any = modules[name]
        module.shown_at = [places[key]]  # in a list: a part of the net, not of the module
        mix(module, ShowsMap)
    return f"{PLACE}.{key}"
