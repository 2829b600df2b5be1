"""A run read back from its folder: config.yaml and a checkpoint become the module and its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from inflate3d import discover
from inflate3d.contracts import AbstractTask, DatasetCard
from inflate3d.errors import InputError
from inflate3d.models import BackboneConfig
from inflate3d.models.spec import NetSpec
from inflate3d.sample import Triple
from inflate3d.training.assignment import tasks_of
from inflate3d.training.checkpoints.ema import best_weights
from inflate3d.training.checkpoints.store import Checkpoint, checkpoints_folder, find_checkpoint
from inflate3d.training.datamodule import DataModule
from inflate3d.training.module import MultiTaskModule
from inflate3d.training.run.folder import read_run_config


def load_module(run_folder: str | Path, which: str = "best") -> MultiTaskModule:
    """Return the module with the weights of a checkpoint ("best", "last" or a path), in evaluation mode, on the CPU.

    Needs neither the shards nor the 2D weights. "best" is "last" where no checkpoint carries a score.
    """
    config, checkpoint = read_run_config(run_folder), choose_checkpoint(run_folder, which)
    state = torch.load(checkpoint.state, map_location="cpu", weights_only=True)
    model = config["model"]
    backbone = without_weights(BackboneConfig(**state["backbone"]), state)
    tasks = {name: _task(spec) for name, spec in model["tasks"].items()}
    module = MultiTaskModule(backbone, tasks, loss_weighting=model.get("loss_weighting", "fixed"))
    module.window_overlap = model.get("window_overlap", module.window_overlap)
    module.window_batch_size = model.get("window_batch_size", module.window_batch_size)
    module.windows = _windows(config["data"])
    module.seen = state.get("seen", {})
    module.build({name: DatasetCard.from_dict(card) for name, card in state["cards"].items()})
    module.load_state_dict(best_weights(state))
    module.frozen.load_state_dict(state.get("frozen", {}))
    return module.eval()


def load_data(run_folder: str | Path, **options: Any) -> DataModule:
    """Return the run's data module, ready for use without a trainer; `options` replace what the config says."""
    config = read_run_config(run_folder)
    data = DataModule(**{**config["data"], **options})
    data.tasks_of = tasks_of({name: _task(spec) for name, spec in config["model"]["tasks"].items()})
    data.setup("validate")
    return data


def choose_checkpoint(run_folder: str | Path, which: str = "best") -> Checkpoint:
    """Return "best" ("last" where no checkpoint carries a score), "last", or what a path or a name in the run says."""
    if (named := checkpoints_folder(run_folder) / which).is_dir():
        which = str(named)
    try:
        found = find_checkpoint(run_folder, which)
    except InputError:
        if which != "best":
            raise
        found = find_checkpoint(run_folder, "last")
    if found is None:
        raise InputError(f"{run_folder} has no checkpoint yet; train first: platform fit")
    return found


def without_weights(config: BackboneConfig, state: Mapping[str, Any]) -> BackboneConfig:
    """Return the config without 2D weights; of a publication, which may be gone, the net that it held."""
    net = NetSpec.from_dict(state["net"])
    if net.name == config.name:
        return replace(config, pretrained=False, inflation=net.inflation)
    has_statistics = any(key.endswith(("running_mean", "domain_mean")) for key in state["state_dict"])
    return replace(
        config,
        name=net.name,
        pretrained=False,
        inflation=net.inflation,
        norm=config.norm if has_statistics else "group",
        timm_kwargs={**net.timm_kwargs, "in_chans": net.in_chans, "global_pool": net.global_pool},
    )


def _task(spec: dict[str, Any]) -> AbstractTask:
    return discover.find("tasks", spec["class_path"]).load()(**spec.get("init_args", {}))


def _windows(data: dict[str, Any]) -> dict[str, Triple]:
    sizes = {name: (config.get("sample") or {}).get("patch_size") for name, config in data["datasets"].items()}
    return {name: (size[0], size[1], size[2]) for name, size in sizes.items() if size}
