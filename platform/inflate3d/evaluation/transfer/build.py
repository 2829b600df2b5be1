"""An arm becomes a module: backbone, head and task, ready for the target."""

from __future__ import annotations

import hashlib

from inflate3d.evaluation.transfer.arms import Arm
from inflate3d.evaluation.transfer.target import Target
from inflate3d.models import Backbone
from inflate3d.training.module import MultiTaskModule


def build_module(arm: Arm, target: Target, *, seed: int, device: str = "cpu") -> MultiTaskModule:
    """Return the arm's backbone with its head for the target; all randomness follows from the seed."""
    protocol = target.protocol
    start_heads = {protocol.dataset: arm.head} if arm.head else {}
    module = MultiTaskModule(arm.of(seed), {protocol.task: target.new_task()}, start_heads=start_heads)
    module.seed = seed
    module.net_inputs = target.data.net_inputs
    module.build({protocol.dataset: target.card})
    module.windows = target.windows
    return module.to(device)


def weights_digest(backbone: Backbone) -> str:
    """Return 16 hex digits that change with any weight or statistic of the backbone."""
    found = hashlib.sha256()
    for name, value in backbone.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]
