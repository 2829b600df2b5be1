"""Joint space-time attention: the tokens of all frames of a clip attend to each other (arXiv:2103.15691, model 1).

Exact on a static clip, since a softmax over D copies of the same keys gives what one copy gives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inflate3d.errors import InputError
from inflate3d.inflation.layers import FoldedLayer
from inflate3d.inflation.mixing import base_name


class JointAttention(FoldedLayer):
    """An attention module whose scaled_dot_product_attention sees every frame of the clip at once.

    rate: how many times fewer frames than the net was given there are at this module.
    """

    prefix = "Joint"
    rate: int = 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Shapes as the 2D module's, N = B * D * n first; windows of all frames at one place attend as one."""
        clips, frames = self.clip()
        with _JoinFrames(clips, -(-frames // self.rate)) as joined:
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        if not joined.calls:
            raise InputError(
                f"{base_name(self)} no longer calls scaled_dot_product_attention (its fused_attn is "
                f"{getattr(self, 'fused_attn', None)}), through which attention='joint' joins the frames of a clip. "
                "Set fused_attn back to True, or build the net with attention='frame'"
            )
        return output


class _JoinFrames(TorchFunctionMode):
    def __init__(self, clips: int, frames: int) -> None:
        super().__init__()
        self.clips, self.frames, self.calls = clips, frames, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.calls += 1
        return joint_attention(*args, clips=self.clips, frames=self.frames, **kwargs)


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    clips: int,
    frames: int,
    **kwargs: Any,
) -> Tensor:
    """Attend over the tokens of all `frames` of each clip; (N, heads, L, d) each, N = clips * frames * n.

    attn_mask: what 2D attention adds between two tokens of a frame, (1 or N, heads or 1, L, L); between tokens of
    unlike frames it is the same. Tensors that do not follow the batch attend as they are.
    """
    attend = F.scaled_dot_product_attention
    rows = query.shape[0]
    is_empty = isinstance(rows, int) and rows == 0
    if is_empty or rows % (clips * frames) or key.shape[0] != rows or frames == 1:
        return attend(query, key, value, attn_mask, *args, **kwargs)
    shape = (clips, frames, rows // (clips * frames))

    def join(x: Tensor) -> Tensor:
        """(B*D*n, ..., L, d) -> (B*n, ..., D*L, d)."""
        x = x.unflatten(0, shape).movedim(1, -3)
        return x.flatten(0, 1).flatten(-3, -2)

    if attn_mask is not None:
        attn_mask = _join_mask(attn_mask, shape, rows)
    y = attend(join(query), join(key), join(value), attn_mask, *args, **kwargs)
    y = y.unflatten(-2, (frames, -1)).unflatten(0, (clips, shape[2]))
    return y.movedim(-3, 1).flatten(0, 2)


def _join_mask(mask: Tensor, shape: tuple[int, int, int], rows: int) -> Tensor:
    frames = shape[1]
    if mask.ndim > 2 and mask.shape[0] == rows:
        mask = mask.unflatten(0, shape)[:, 0].flatten(0, 1)
    columns = mask.repeat(*[1] * (mask.ndim - 1), frames)
    return columns if mask.shape[-2] == 1 else torch.cat([columns] * frames, -2)
