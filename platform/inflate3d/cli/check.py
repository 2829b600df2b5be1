"""Checks a merged config before torch is imported: keys, classes, cross-references, shards. Takes a second."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inflate3d.cli.config import Config
from inflate3d.cli.signatures import constant, signature
from inflate3d.cli.timm_names import check_model_name
from inflate3d.contracts import DatasetCard, medium_of, zoo_names
from inflate3d.data.samples.options import sample_options, view_options
from inflate3d.data.shards.folds import Fold
from inflate3d.data.shards.manifest import Manifest
from inflate3d.discover import Group, PlugIn, find
from inflate3d.errors import InputError, close_names, unknown_name
from inflate3d.inflation.plan import InflationPlan, NetInput, resolve_plan
from inflate3d.inflation.spec import Inflation
from inflate3d.models.publication.index import find_entry, is_published
from inflate3d.models.publication.layout import CONFIG, PREFIX
from inflate3d.models.publication.places import has_place
from inflate3d.publishing.destination import parse_destination
from inflate3d.remote.address import is_remote, join
from inflate3d.sample import Triple
from inflate3d.training.check import Needs, task_problems
from inflate3d.training.run.build_record import check_build_record

# Key paths whose keys are the arguments of a class.
_CLASSES = {
    ("trainer",): "inflate3d.training.device.Trainer",
    ("model",): "inflate3d.training.MultiTaskModule",
    ("model", "backbone"): "inflate3d.models.BackboneConfig",
    ("data",): "inflate3d.training.DataModule",
}
_DATASET = "inflate3d.training.DatasetConfig"
_TOP = ("seed_everything", "ckpt_path", "trainer", "model", "data", "publish", "pictures")


def check_config(config: Config) -> None:
    """Raise InputError, with file, line and key, for the first thing that is wrong.

    Full class paths are written in, and the plan that "auto" is for these datasets.
    """
    _check_keys(config, (), _TOP)
    for path, class_path in _CLASSES.items():
        if (found := signature(class_path)) and not found.is_open:
            _check_keys(config, path, found.names)
    _check_destination(config)
    _check_optimizer(config)
    _check_sync(config)
    _check_max_time(config)
    _check_backbone(config)
    datasets = _named(config, ("data", "datasets"), "dataset")
    tasks = _named(config, ("model", "tasks"), "task")
    plug_ins = {name: _check_plug_in(config, "tasks", ("model", "tasks", name)) for name in tasks}
    _check_cross_references(config, datasets, tasks)
    _check_start_heads(config, datasets)
    for name in datasets:
        _check_dataset(config, name)
    cards = {name: _restated(config, name, _card(config, name)) for name in datasets}
    for task, plug_in in plug_ins.items():
        _check_targets(config, task, plug_in, cards)
    sizes = {name: _input_size(config, name, card) for name, card in cards.items()}
    plan = _settle_plan(config, [NetInput(sizes[n], card.input.spacing_mm) for n, card in cards.items()])
    for name, card in cards.items():
        _check_depth(config, name, sizes[name], plan)
        _check_stem(config, name, card)


def shard_folder(config: Config, dataset: str) -> Path | str:
    """Return the folder or address of a dataset's shards in this config."""
    root = str(config.get("data", "root", default="."))
    return join(root, dataset) if is_remote(root) else Path(root).expanduser() / dataset


def _check_keys(config: Config, path: tuple[str, ...], allowed: Iterable[str]) -> None:
    mapping = config.get(*path) if path else config.values
    if mapping is None:
        return
    if not isinstance(mapping, dict):
        raise InputError(f"{config.where(*path)} is {mapping!r}; expected keys: {', '.join(allowed)}")
    for key in mapping:
        if key not in allowed:
            raise unknown_name("key", key, allowed, where=config.where(*path, key))


def _named(config: Config, path: tuple[str, ...], what: str) -> dict[str, Any]:
    mapping = config.get(*path)
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(
            f"{config.where(*path)}: lists no {what}; add one, as in: platform configs show quickstart.yaml"
        )
    for name, value in mapping.items():
        if not isinstance(value, dict):
            raise InputError(f"{config.where(*path, name)} is {value!r}; expected keys below it")
    return mapping


def _check_destination(config: Config) -> None:
    """Refuse a destination that holds something else, before training and not after it."""
    if destination := config.get("publish"):
        try:
            parse_destination(str(destination))
        except InputError as error:
            raise InputError(f"{config.where('publish')}: {str(error).removeprefix('--output ')}") from None


def _check_optimizer(config: Config) -> None:
    """Check the optimiser's arguments, where its source shows them; AdamW is the default class."""
    path = ("model", "optimizer")
    value = config.get(*path, default={})
    if not isinstance(value, dict):
        return
    _check_keys(config, path, ("class_path", "init_args", "dict_kwargs"))
    class_path = str(value.setdefault("class_path", "torch.optim.AdamW"))
    config.values.setdefault("model", {})["optimizer"] = value
    found = signature(class_path if "." in class_path else f"torch.optim.{class_path}")
    if found and not found.is_open:
        _check_keys(config, (*path, "init_args"), found.names)


def _check_sync(config: Config) -> None:
    """Refuse sync_batchnorm, which would replace norms that are not plain torch ones."""
    if config.get("trainer", "sync_batchnorm"):
        raise InputError(
            f"{config.where('trainer', 'sync_batchnorm')} is true: it would replace the norms of each domain, and ones "
            "with an activation, by torch's plain SyncBatchNorm. Leave it out; if a rank's batch is too "
            "small, use --model.backbone.norm group"
        )


def _check_max_time(config: Config) -> None:
    """Refuse a trainer.max_time that Lightning cannot read."""
    value = config.get("trainer", "max_time")
    if isinstance(value, str) and re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value):
        return
    if value is not None and not isinstance(value, dict):
        raise InputError(
            f"{config.where('trainer', 'max_time')} is {value!r}; expected days, hours, minutes and seconds as "
            "DD:HH:MM:SS, such as 00:12:30:00"
        )


def _check_backbone(config: Config) -> None:
    name = config.get("model", "backbone", "name")
    where = config.where("model", "backbone", "name")
    if not isinstance(name, str):
        raise InputError(f"{where} is {name!r}; expected the name of a model. All names: platform models list")
    scheme, colon, path = name.partition(":")
    if colon and scheme == "local-dir" and not (Path(path).expanduser() / CONFIG).is_file():
        raise InputError(
            f"{where}: no publication in {path!r}; local-dir: needs a folder written by `platform publish`"
        )
    check_model_name(name, where=where)


def _check_plug_in(config: Config, group: Group, path: tuple[str, ...], *others: str) -> PlugIn:
    """Check a {class_path, init_args} of a built-in or third-party class; write its full class_path into the config.

    others: further keys that are allowed.
    """
    _check_keys(config, path, ("class_path", "init_args", *others))
    name = config.get(*path, "class_path")
    if not isinstance(name, str):
        raise InputError(f"{config.where(*path)}: class_path is missing. All names: platform {group} list")
    try:
        plug_in = find(group, name)
    except InputError as error:
        raise InputError(f"{config.where(*path, 'class_path')}: {error}") from None
    found = signature(plug_in.class_path)
    if found:
        arguments = config.get(*path, "init_args", default={})
        if not found.is_open:
            _check_keys(config, (*path, "init_args"), found.names)
        if missing := [n for n in found.required if n not in arguments]:
            raise InputError(f"{config.where(*path)}: {plug_in.class_name} needs {', '.join(missing)} under init_args")
    config.get(*path)["class_path"] = plug_in.class_path
    return plug_in


def _check_cross_references(config: Config, datasets: dict[str, Any], tasks: dict[str, Any]) -> None:
    used: set[str] = set()
    for task in tasks:
        path = ("model", "tasks", task, "init_args", "datasets")
        wanted = config.get(*path)
        if not isinstance(wanted, list | dict) or not wanted:
            raise InputError(f"{config.where(*path)} is {wanted!r}; expected a list of names: [{', '.join(datasets)}]")
        for name in wanted:
            if name not in datasets:
                raise unknown_name(
                    "dataset", str(name), datasets, where=config.where(*path), see="the keys of data.datasets"
                )
            used.add(name)
    for name in datasets:
        if name not in used:
            raise InputError(
                f"{config.where('data', 'datasets', name)}: no task uses this dataset; "
                f"add it to a task's datasets, or remove it: --data.datasets.{name} null"
            )


def _check_dataset(config: Config, name: str) -> None:
    path = ("data", "datasets", name)
    if found := signature(_DATASET):
        _check_keys(config, path, found.names)
        for key in (k for k in found.required if k not in config.get(*path)):
            close = close_names(name, [n for n in config.get("data", "datasets") if n != name])
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise InputError(f"{config.where(*path)}: {key} is missing{hint}")
    _check_number(config, (*path, "batch_size"), integer=True)
    _check_number(config, (*path, "weight"))
    if (fold := config.get(*path, "fold")) is not None:
        Fold.from_dict(fold, where=config.where(*path, "fold"))
    if group := config.get(*path, "group"):
        _check_keys(config, ("data", "groups", str(group)), ("weight", "temperature"))


def _check_number(config: Config, path: tuple[str, ...], *, integer: bool = False) -> None:
    value = config.get(*path)
    allowed = (int,) if integer else (int, float)
    if value is not None and (isinstance(value, bool) or not isinstance(value, allowed) or value <= 0):
        what = "a whole number" if integer else "a number"
        raise InputError(f"{config.where(*path)} is {value!r}; expected {what} above 0")


def _card(config: Config, name: str) -> DatasetCard:
    """Return the card from the shards, or from the class whose `build` will make them."""
    path = ("data", "datasets", name)
    folder = shard_folder(config, name)
    build = config.get(*path, "build")
    plug_in = None if build is None else _check_plug_in(config, "datasets", (*path, "build"), "encode")
    try:
        if plug_in is None or isinstance(folder, str) or (folder / "manifest.json").is_file():
            card = Manifest.load(folder).card
            if plug_in is not None and isinstance(folder, Path):
                check_build_record(folder, build)
            return card
        card = plug_in.load()(**build.get("init_args", {})).card
        if build.get("encode") is not None:
            medium_of(card).encoding(build["encode"], where="build.encode")
        return card
    except InputError as error:
        raise InputError(f"{config.where(*path)}: {error}") from None


def _restated(config: Config, name: str, card: DatasetCard) -> DatasetCard:
    """Return the card with what the config says otherwise of its targets."""
    path = ("data", "datasets", name, "targets")
    return card.restated(config.get(*path) or {}, where=config.where(*path))


def _input_size(config: Config, name: str, card: DatasetCard) -> Triple | None:
    """Check the options of a dataset's samples and views; return the (D, H, W) of the shortest, None if not stated."""
    path = ("data", "datasets", name, "sample")
    given, views = config.get(*path, default={}), config.get(*path[:-1], "views")
    whole = sample_options(card, given, where=config.where(*path))
    options = [whole, *view_options(card, given, views, where=config.where(*path[:-1])).values()]
    return min((o.input_size for o in options if o.input_size is not None), default=None)


def _settle_plan(config: Config, inputs: list[NetInput]) -> InflationPlan | None:
    """Check how the net is inflated, and write in the plan of "auto"; None where published weights bring their own."""
    path = ("model", "backbone")
    backbone = config.get(*path)
    words = {k: v for k, v in backbone.items() if k in Inflation().to_dict()}
    try:
        given = Inflation.from_dict(words)
        if given.plan == "auto" and is_published(backbone["name"]):
            return None
        own = {key: backbone.get(key) for key in ("input_size", "spacing_mm")}
        plan = resolve_plan(given.plan, datasets=inputs, **own)
    except InputError as fault:
        raise InputError(f"{config.where(*path)}: {fault}") from None
    if given.plan == "auto":
        backbone["plan"] = plan.to_dict()
    return plan


def _check_depth(config: Config, name: str, size: Triple | None, plan: InflationPlan | None) -> None:
    """Check that the plan leaves something of a dataset's samples along D."""
    if plan is None or size is None or size[0] >= plan.min_depth:
        return
    where = config.where("data", "datasets", name, "sample")
    raise InputError(
        f"{where}: {size[0]} frames or slices; the plan {plan.name} needs at least {plan.min_depth}. "
        "Use longer samples, or another plan: --model.backbone.plan auto"
    )


def _check_stem(config: Config, name: str, card: DatasetCard) -> None:
    """Check that the net has a stem for a dataset's modality, with as many channels."""
    path, channels = ("model", "backbone", "stems"), card.input.channels
    stems = config.get(*path)
    shown = f"{name!r} has {len(channels)} channel{'s' * (len(channels) > 1)} ({', '.join(channels)})"
    if stems is None:
        takes = _channels_of_stem(config)
        if takes is not None and len(channels) not in (1, takes):
            raise InputError(
                f"{config.where('data', 'datasets', name)}: {shown}; the net's stem takes {takes}. Give the net a stem "
                f"for it: --model.backbone.stems '{{{card.modality}: {len(channels)}}}'"
            )
    elif card.modality not in stems:
        raise unknown_name("stem", card.modality, stems, where=f"{config.where(*path)}: dataset {name!r}")
    elif stems[card.modality] != len(channels):
        raise InputError(f"{config.where(*path, card.modality)} is {stems[card.modality]}, but {shown}")


def _channels_of_stem(config: Config) -> int | None:
    """Return the channels of the net's stem; None if only a publication that cannot be read from here states them."""
    if (net := zoo_names().get(_source(config))) is not None:
        return net.in_chans
    if not has_place(_source(config)):
        return int(config.get("model", "backbone", "timm_kwargs", "in_chans", default=3))
    try:
        return int(_publication(config)["net"]["in_chans"])
    except (OSError, ValueError, KeyError, TypeError):  # it is elsewhere, or the loader refuses it
        return None


def _source(config: Config) -> str:
    name = str(config.get("model", "backbone", "name"))
    return entry.source if (entry := find_entry(name)) else name


def _publication(config: Config) -> Any:
    """Return the config.json that the backbone starts from; OSError or ValueError if it cannot be read from here."""
    folder = Path(_source(config).removeprefix(PREFIX)).expanduser()
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def _check_start_heads(config: Config, datasets: dict[str, Any]) -> None:
    """Check the names in model.start_heads, as far as the publication can be read from here."""
    path = ("model", "start_heads")
    wanted = config.get(*path) or {}
    if not isinstance(wanted, dict):
        raise InputError(
            f"{config.where(*path)} is {wanted!r}; expected a published head for a dataset: {{mine: HEAD}}"
        )
    for name, head in wanted.items():
        where = config.where(*path, name)
        if name not in datasets:
            raise unknown_name("dataset", str(name), datasets, where=where, see="the keys of data.datasets")
        if not has_place(_source(config)):
            raise InputError(f"{where}: heads come with published weights; model.backbone.name is {_source(config)!r}")
        try:
            heads = dict(_publication(config)["heads"])
        except (OSError, ValueError, KeyError, TypeError):  # it is elsewhere, or the loader refuses it
            continue
        if head not in heads:
            raise unknown_name("head", str(head), heads, where=where)


def _check_targets(config: Config, task: str, plug_in: PlugIn, cards: dict[str, DatasetCard]) -> None:
    """Check that each dataset of a task has the medium and the target that it needs."""
    media: Any = constant(plug_in.class_path, "media") or ()
    target = constant(plug_in.class_path, "target")
    needs = Needs(plug_in.class_name, media, None if target is None else str(target))
    wanted = config.get("model", "tasks", task, "init_args", "datasets")
    for problem in task_problems(task, needs, wanted, cards):
        where = config.where(*problem.key_path)
        raise InputError(f"{where}: {problem.text}. All tasks: platform tasks list")
