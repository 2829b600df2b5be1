"""A net with a head of any type on its features, as a run trained them."""

from __future__ import annotations

from torch import Tensor, nn

from inflate3d.contracts import Features
from inflate3d.models.levels import Intermediates
from inflate3d.nn import Head


class HeadedNet(nn.Module):
    """(B, C, D, H, W) -> what a published head answers. `net` is the encoder, without a classifier of its own."""

    def __init__(self, net: nn.Module, levels: list[int], head: Head) -> None:
        """levels: indices of the maps that the head sees (models.levels)."""
        super().__init__()
        self.net, self.head = net, head
        self.intermediates = Intermediates(net, levels)
        for name in ("net_spec", "plan", "input_spec", "published", "in_chans_expected", "pretrained_cfg"):
            setattr(self, name, getattr(net, name, None))
        self.label_names: list[str] = []

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return the head's logits."""
        final, maps = self.intermediates(x_BCDHW)
        pooled = self.net.forward_head(final, pre_logits=True)  # type: ignore[operator]
        depth, height, width = x_BCDHW.shape[2:]
        logits: Tensor = self.head(Features(maps, pooled, (depth, height, width)))
        return logits
