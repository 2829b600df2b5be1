"""The plan of a run: a config of plain values with their reasons, a pure function of fingerprint, net and budget."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from inflate3d.contracts import SupervisedTask
from inflate3d.contracts.task import fit_target
from inflate3d.discover import PlugIn, plug_ins
from inflate3d.errors import InputError
from inflate3d.models.publication.index import is_published
from inflate3d.planning.chosen import Chosen, Tree
from inflate3d.planning.fingerprint import Fingerprint
from inflate3d.planning.geometry import median_shape, planned_spacing
from inflate3d.planning.layouts import Layout
from inflate3d.planning.net_cost import NetCost
from inflate3d.planning.samples import Proposal, Room, propose
from inflate3d.sample import Spacing, Triple
from inflate3d.training.check import Needs

LEAST_STEPS, MOST_STEPS = 200, 5000
FEWEST_STEPS = 50  # where time is short, samples are made smaller only to reach these
_MEMORY_SHARE = 0.5  # the rest: the optimiser's workspace, loading, and whatever else runs
_TRAINING_SHARE = 0.8  # the rest: validation, checkpoints, the first batches
_ADAM_BYTES = 16  # a parameter: weight, gradient and two moments in float32


@dataclass(frozen=True)
class Budget:
    """What a run may take: free bytes of the device, minutes of training."""

    memory_bytes: int
    minutes: float
    cores: int = 1


@dataclass(frozen=True)
class Grid:
    """spacing_mm: (z, y, x) that volumes are resampled to, None where they are not; size: the median (D, H, W) then."""

    spacing_mm: Spacing | None
    size: Triple
    reason: str


def planned_grid(found: Fingerprint, layout: Layout) -> Grid:
    """Return the spacing and the median size: 1. as the dataset was told  2. nnU-Net's rule  3. as the files have it.

    The last for what has no anatomy, and for datasets that do not resample.
    """
    if found.card.input.spacing_mm is not None:
        return Grid(found.card.input.spacing_mm, found.median_shape, "as the dataset states")
    if found.card.input.orientation is None or "spacing_mm" not in _parameters(layout):
        return Grid(None, found.median_shape, "")
    spacing_mm, reason = planned_spacing(found.shapes_DHW, found.spacings_mm)
    return Grid(spacing_mm, median_shape(found.shapes_DHW, found.spacings_mm, spacing_mm), reason)


def plan_run(
    found: Fingerprint,
    layout: Layout,
    grid: Grid,
    net: NetCost,
    budget: Budget,
    *,
    model: str,
    start_head: Chosen | None,
    output: str,
) -> Tree:
    """Return the config of a run, each value with its reason. output: the run's folder; shards go to output/shards.

    InputError where not even two of the smallest samples fit into memory, or no task fits the targets.
    """
    memory_voxels = (budget.memory_bytes * _MEMORY_SHARE - _ADAM_BYTES * net.parameters) / net.bytes_per_voxel
    if memory_voxels < 2 * prod(min(s, n) for s, n in zip(net.stride, grid.size, strict=True)):
        raise InputError(
            f"finetune: {model} does not fit into {budget.memory_bytes / 1e9:.1f} GB of free memory: it has "
            f"{net.parameters / 1e6:.0f} M parameters. Free some, or take a smaller net: --model NAME"
        )
    seconds = budget.minutes * 60 * _TRAINING_SHARE
    room = Room(*(min(memory_voxels, _in_time(net, seconds / steps)) for steps in (FEWEST_STEPS, LEAST_STEPS)))
    proposal = propose(found, grid.size, net.stride, room=room)
    name = _name_of(found.card.name)
    steps = _steps(found, proposal, net, seconds, budget.minutes)
    return {
        "seed_everything": Chosen(0),
        "ckpt_path": Chosen("last", "the same command goes on where it stopped"),
        "pictures": Chosen(True, "curves and predictions, drawn at the end"),
        "trainer": _trainer(output, steps, budget),
        "model": _model(found, net, proposal, steps.value, model=model, start_head=start_head, name=name),
        "data": {
            "root": Chosen(f"{output}/shards"),
            "num_workers": Chosen(max(1, min(4, budget.cores - 1)), f"of {budget.cores} cores"),
            "datasets": {name: _dataset(found, layout, grid, proposal)},
        },
    }


def _in_time(net: NetCost, step_s: float) -> float:
    """Return the voxels of a step of so many seconds; what costs no more than its overhead is nearly free."""
    return max(net.voxels_in(step_s), net.overhead_s / net.seconds_per_voxel)


def _steps(found: Fingerprint, proposal: Proposal, net: NetCost, seconds: float, minutes: float) -> Chosen:
    """Return as many steps as the cases want, within bounds, and no more than the minutes allow."""
    cases, batch = found.splits["train"], proposal.batch_size.value
    wanted = max(LEAST_STEPS, min(MOST_STEPS, proposal.passes * cases // batch))
    step_seconds = net.step_s(prod(proposal.size) * batch)
    possible = int(seconds / step_seconds)
    if possible < wanted:
        return Chosen(max(possible, 1), f"{minutes:g} minutes at {step_seconds:.2g} s a step; the cases want {wanted}")
    about = f"about {wanted * step_seconds / 60:.2g} minutes"
    return Chosen(wanted, f"{proposal.passes} passes of {cases} cases, {LEAST_STEPS} to {MOST_STEPS} steps; {about}")


def _trainer(output: str, steps: Chosen, budget: Budget) -> Tree:
    whole = round(budget.minutes * 60)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return {
        "default_root_dir": Chosen(output),
        "devices": Chosen(1, "as measured; for more: platform fit --config"),
        "max_steps": steps,
        "max_time": Chosen(f"{hours // 24:02}:{hours % 24:02}:{minutes:02}:{rest:02}", "--minutes, at the latest"),
        "val_check_interval": Chosen(max(1, steps.value // 5), "five validations; the best is published"),
        "gradient_clip_val": Chosen(1.0),
    }


def _model(
    found: Fingerprint,
    net: NetCost,
    proposal: Proposal,
    steps: int,
    *,
    model: str,
    start_head: Chosen | None,
    name: str,
) -> Tree:
    channels = found.card.input.channels
    stems = {found.card.modality: len(channels)}
    whose = "the published weights' own" if is_published(model) else "of the spacing and size (plan auto)"
    strides = f"{whose}: strides of {' x '.join(map(str, net.stride))} to the deepest map"
    backbone: dict[str, Chosen | Tree] = {
        "name": Chosen(model),
        "pretrained": Chosen(True),
        "plan": {key: Chosen(value, strides if key == "strides" else "") for key, value in net.plan.items()},
    }
    if net.timm_kwargs:
        backbone["timm_kwargs"] = Chosen(dict(net.timm_kwargs), "else the deepest map would be one voxel high or wide")
    if len(channels) != net.in_chans:
        backbone["stems"] = Chosen(stems, f"the net's own stem takes {net.in_chans}")
    begun = {"start_heads": {name: start_head}} if start_head else {}
    return {
        "backbone": backbone,
        "optimizer": {
            "class_path": Chosen("torch.optim.AdamW"),
            "init_args": {"lr": proposal.lr, "weight_decay": Chosen(0.05)},
        },
        "warmup_steps": Chosen(max(1, min(50, steps // 10)), "a tenth of the steps, 50 at most"),
        **begun,
        "tasks": {target: _task(found, name, target) for target in trained_targets(found)},
    }


def trained_targets(found: Fingerprint) -> list[str]:
    """Return the targets that are trained: those of voxels alone where there are any, since patches are cut then."""
    targets = found.card.targets
    return [t for t in targets if targets[t].per_voxel] or list(targets)


def _task(found: Fingerprint, dataset: str, target: str) -> Tree:
    plug_in = task_for(found, target)
    arguments = inspect.signature(plug_in.load().__init__).parameters
    proposed = {
        "label_smoothing": Chosen(0.1, "of the recipes"),
        "dropout": Chosen(0.2, "of the recipes"),
        "best_by": Chosen("auroc", "what chooses the best checkpoint; accuracy moves by a whole case"),
    }
    chosen = {key: value for key, value in proposed.items() if key in arguments}
    return {
        "class_path": Chosen(plug_in.class_name, f"for {found.card.targets[target].describe()}"[:100]),
        "init_args": {"datasets": Chosen({dataset: target}), **chosen},
    }


def task_for(found: Fingerprint, target: str) -> PlugIn:
    """Return the task with a score that takes this medium and target. InputError where none does."""
    for plug_in in plug_ins("tasks").values():
        task = plug_in.load()
        needs = Needs.of(task)
        if needs.target is None or task.main_metric is None or not issubclass(task, SupervisedTask):
            continue
        try:
            fit_target(needs.title, found.card.name, found.card, media=needs.media, target=needs.target, given=target)
        except InputError:
            continue
        return plug_in
    told = found.card.targets[target].describe()
    raise InputError(f"finetune: no task takes {told} of {found.card.media}. All tasks: platform tasks list")


def _dataset(found: Fingerprint, layout: Layout, grid: Grid, proposal: Proposal) -> Tree:
    arguments: dict[str, Chosen] = {key: Chosen(value) for key, value in layout.arguments.items()}
    if grid.spacing_mm is not None and "spacing_mm" in _parameters(layout):
        arguments["spacing_mm"] = Chosen(list(grid.spacing_mm), grid.reason)
    intensity = found.card.input.intensity
    if intensity.mode == "window" and "window" in _parameters(layout):
        arguments.setdefault("window", Chosen(list(intensity.window), _window_reason(found.card.modality)))
    return {
        "batch_size": proposal.batch_size,
        "sample": proposal.sample,
        "augment": Chosen(proposal.augment),
        "build": {
            "class_path": Chosen(layout.plug_in.class_name, f"the layout found; intensities: {_intensity(found)}"),
            "init_args": arguments,
        },
    }


def _window_reason(modality: str) -> str:
    if modality == "ct":
        return "0.5 to 99.5 % of what training volumes hold, as nnU-Net for CT; or the dataset's customary window"
    return "the values that the files may hold"


def _intensity(found: Fingerprint) -> str:
    if found.card.input.intensity.mode == "zscore":
        return f"each volume's own z-score, as nnU-Net for {found.card.modality}"
    low, high = found.card.input.intensity.window
    return f"a window of {low:g} to {high:g}"


def _parameters(layout: Layout) -> Mapping[str, Any]:
    return inspect.signature(layout.plug_in.load().__init__).parameters


def _name_of(title: str) -> str:
    """Return a dataset's name as a key of a config: small letters, digits and underscores."""
    return re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "mine"
