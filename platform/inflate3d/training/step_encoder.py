"""The backbone as the tasks of one micro-batch see it: each view is encoded once."""

from __future__ import annotations

from torch import Tensor, is_grad_enabled, nn

from inflate3d.contracts import FeatureInfo, Features
from inflate3d.models import Backbone


class StepEncoder:
    """Remembers features by the view's tensor, as it is now, and its domain; lives as long as one micro-batch."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.feature_info: FeatureInfo = backbone.feature_info
        self._known: dict[tuple[int, int, str, bool], tuple[Tensor, Features]] = {}

    def __call__(self, view_BCDHW: Tensor, *, domain: str) -> Features:
        """Return the features of a view, computed at its first call."""
        key = (id(view_BCDHW), view_BCDHW._version, domain, is_grad_enabled())
        if key not in self._known:
            # The view is kept too: another may not come to have its id.
            self._known[key] = view_BCDHW, self.backbone(view_BCDHW, domain=domain)
        return self._known[key][1]

    def frozen_copy(self) -> nn.Module:
        """Return a copy of the backbone that is never trained."""
        return self.backbone.frozen_copy()

    @property
    def made(self) -> list[Features]:
        """All features that were not made under torch.no_grad."""
        return [features for (*_, has_grad), (_, features) in self._known.items() if has_grad]
