"""One number a voxel on the image's grid, such as the same scene in another contrast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inflate3d.contracts.target import AbstractTarget
from inflate3d.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True)
class VoxelValueTarget(AbstractTarget):
    """uint8 as stored; in a batch (B, D, H, W) float32 from -1 to 1, as a window from 0 to 255 gives."""

    per_voxel: ClassVar[bool] = True

    def encode(self, value: Any) -> np.ndarray:
        """Take (D, H, W) uint8."""
        self.check(value)
        array: np.ndarray = value
        return array

    def check(self, stored: Any) -> None:
        """Refuse what is no uint8 volume; its voxels are not read."""
        if getattr(stored, "dtype", None) != "uint8" or len(stored.shape) != 3:
            got = f"{stored.dtype} {tuple(stored.shape)}" if hasattr(stored, "dtype") else type(stored).__name__
            raise InputError(f"is {got}; expected uint8 (D, H, W)")

    def tensor(self, stored: Any) -> Tensor:
        """(D, H, W) float32."""
        import torch

        return torch.as_tensor(stored).float() / 127.5 - 1

    def facts(self, array: np.ndarray) -> Any:
        """Mean and standard deviation."""
        return [round(float(array.mean()), 3), round(float(array.std()), 3)]

    def summarise(self, stored: Sequence[Any]) -> dict[str, Any]:
        """Mean of the samples' means."""
        known = [facts[0] for facts in stored if facts]
        return {"mean": round(sum(known) / len(known), 3)} if known else {}

    def describe(self) -> str:
        """One phrase."""
        return "a number a voxel"

    def show(self, value: Tensor) -> str:
        """The range."""
        return f"{float(value.min()):.2f} to {float(value.max()):.2f}"

    def tally(self, value: Tensor) -> Tensor:
        """How many there are, and their sum."""
        return value.new_tensor([value.numel(), float(value.double().sum())]).double()

    def constant_logits(self, tally: Tensor, like: Tensor) -> Tensor:
        """The mean, (B, D, H, W)."""
        return (tally[1] / tally[0].clamp_min(1)).float().expand(like.shape)
