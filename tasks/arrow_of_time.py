"""Arrow of time: was a clip played forwards, backwards, fast or shuffled? Labels come from the clip itself."""

# B batch, C channel, D frames, H W pixels.

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from inflate3d.contracts import AbstractTask, Encoder, Exhibit, Panel, Probabilities
from inflate3d.errors import InputError, unknown_name
from inflate3d.heads.linear import LinearHead
from inflate3d.seeds import mix

if TYPE_CHECKING:
    from inflate3d.sample import Batch
    from torch import Tensor, nn

PLAYS = ("forwards", "backwards", "fast", "shuffled")


class ArrowOfTime(AbstractTask):
    """Cross-entropy over how half of a clip's frames are played; each sample's play is drawn anew.

    forwards: every frame of a half; backwards: from the last to the first; fast: every second frame of the whole;
    shuffled: the half's frames in another order. `accuracy` beside `chance` tells whether it learns.

    After Pickup et al. (CVPR 2014), Wei et al. (CVPR 2018), Shuffle and Learn (arXiv:1603.08561) and SpeedNet
    (arXiv:2004.06130).
    """

    media: ClassVar[tuple[str, ...]] = ("video",)
    measured: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "chance")

    def __init__(
        self, *, datasets: Sequence[str], loss_weight: float = 1.0, plays: Sequence[str] = ("forwards", "backwards")
    ) -> None:
        """plays: two or more of forwards, backwards, fast, shuffled."""
        super().__init__(datasets=datasets, loss_weight=loss_weight)
        for play in plays:
            if play not in PLAYS:
                raise unknown_name("play", play, PLAYS, where="ArrowOfTime")
        if len(set(plays)) != len(plays) or len(plays) < 2:
            raise InputError(f"ArrowOfTime: plays is {list(plays)}; give two or more different ones of {list(PLAYS)}")
        self.plays = list(plays)

    def build(self, encoder: Encoder) -> None:
        """Make one linear layer for all datasets."""
        self.head = LinearHead(encoder.feature_info, len(self.plays))

    def modules(self) -> dict[str, nn.Module]:
        """The layer."""
        return {"play": self.head}

    def step(self, encoder: Encoder, batch: Batch, *, seed: int) -> dict[str, Tensor]:
        """Play each clip in one of the ways, and ask which."""
        from torch.nn.functional import cross_entropy

        clips, label = self._played(batch, seed)
        logits = self.head(encoder(clips, domain=batch.dataset)).float()
        label = label.to(logits.device)
        accuracy = (logits.argmax(1) == label).float().mean()
        chance = accuracy.new_tensor(1 / len(self.plays))
        return {"loss": cross_entropy(logits, label), "accuracy": accuracy, "chance": chance}

    def predict(self, encoder: Encoder, batch: Batch) -> Probabilities:
        """Return how likely each way is for the first half of the clip as it is, (B, len(plays))."""
        half = batch.image[:, :, : self._half(batch.image.shape[2])]
        return Probabilities(self.head(encoder(half, domain=batch.dataset)).float().softmax(dim=1))

    def show(self, encoder: Encoder, batch: Batch, *, seed: int) -> list[Exhibit]:
        """Return each clip as a step of this seed plays it, how it was played, and what was told."""
        clips, label = self._played(batch, seed)
        told = self.head(encoder(clips, domain=batch.dataset)).float().softmax(dim=1).cpu()
        found = []
        for clip, truth, chances in zip(clips, label.tolist(), told, strict=True):
            best = int(chances.argmax())
            said = f"played {self.plays[truth]}, told {self.plays[best]} {float(chances[best]):.2f}"
            said = f"{said}: {'right' if best == truth else 'WRONG'}"
            found.append(Exhibit(said, [Panel("as played", clip)]))
        return found

    def _played(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """Return the clips as they are played, (B, C, D / 2, H, W), and how: (B,) indices of `plays`, on the CPU."""
        import torch

        draw = torch.Generator().manual_seed(mix(seed, "plays"))
        # In turns, from a drawn start: each way is as frequent as it can be in a batch.
        first = int(torch.randint(len(self.plays), (), generator=draw))
        label = (torch.arange(len(batch)) + first) % len(self.plays)
        clips = [self._play(clip, self.plays[int(i)], draw) for clip, i in zip(batch.image, label, strict=True)]
        return torch.stack(clips), label

    def _play(self, clip_CDHW: Tensor, play: str, draw: object) -> Tensor:
        import torch

        frames = clip_CDHW.shape[1]
        half = self._half(frames)
        if play == "fast":
            return clip_CDHW[:, : 2 * half : 2]
        start = int(torch.randint(frames - half + 1, (), generator=draw))  # type: ignore[call-overload]
        part = clip_CDHW[:, start : start + half]
        if play == "backwards":
            return part.flip(1)
        if play == "shuffled":
            order = torch.randperm(half, generator=draw)  # type: ignore[call-overload]
            while half > 1 and bool((order.diff() == 1).all() | (order.diff() == -1).all()) and half > 2:
                order = torch.randperm(half, generator=draw)  # type: ignore[call-overload]
            return part[:, order.to(part.device)]
        return part

    def _half(self, frames: int) -> int:
        if frames < 4:
            raise InputError(f"ArrowOfTime: clips have {frames} frames; give num_frames 4 or more")
        return frames // 2
