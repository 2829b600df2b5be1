"""Groups in a config: a dataset with `members` is several datasets that share its keys, its weight and its tasks.

data:
  datasets:
    ct:                                       # one entry of the mixture, of weight 2
      weight: 2
      temperature: 3                          # among its members
      batch_size: 8                           # what all of them have, unless they say otherwise
      members: {kits23: {}, word: {weight: 2}}
model:
  tasks:
    organs: {class_path: MedicalSegmentation, init_args: {datasets: [ct]}}     # all of them
"""

from __future__ import annotations

import copy
from typing import Any

from inflate3d.cli.config import Config, KeyPath
from inflate3d.errors import InputError

_DATASETS = ("data", "datasets")
_OWN = ("members", "weight", "temperature")


def expand_groups(config: Config) -> None:
    """Put the members of each group in its place, each with `group: NAME`, and its weight under data.groups.

    Tasks that name a group get its members. InputError, with file and line, for a member that is there twice.
    """
    datasets = config.get(*_DATASETS)
    if not isinstance(datasets, dict):
        return
    groups = {name: d for name, d in datasets.items() if isinstance(d, dict) and "members" in d}
    members_of = {name: _expand(config, datasets, name) for name in groups}
    if not groups:
        return
    placed: dict[str, Any] = {}
    for name in list(datasets):
        for new in members_of.get(name, [name]):
            placed[new] = datasets[new]
    config.values["data"]["datasets"] = placed
    for task in (config.get("model", "tasks", default={}) or {}).values():
        _name_members(task, members_of)


def _expand(config: Config, datasets: dict[str, Any], name: str) -> list[str]:
    group, here = datasets[name], (*_DATASETS, name)
    members = group["members"]
    if not isinstance(members, dict) or not any(v is not None for v in members.values()):
        where = config.where(*here, "members")
        raise InputError(f"{where} is {members!r}; expected datasets: {{NAME: {{}}, NAME: {{weight: 2}}}}")
    shared = {key: value for key, value in group.items() if key not in _OWN}
    found = []
    for member, own in members.items():
        if own is None:
            continue
        where = config.where(*here, "members", member)
        if not isinstance(own, dict):
            raise InputError(f"{where} is {own!r}; expected keys below it, or {{}}")
        if member in datasets:
            raise InputError(f"{where}: data.datasets has {member!r} already; a dataset has one place")
        if "members" in own:
            raise InputError(f"{where}: a member cannot be a group; list its members in {name!r}")
        datasets[member] = {**_merged(shared, own), "group": name}
        _move_origins(config, here, (*_DATASETS, member), only=tuple(shared))
        _move_origins(config, (*here, "members", member), (*_DATASETS, member))
        found.append(member)
    own_keys = {key: group[key] for key in ("weight", "temperature") if key in group}
    config.values["data"].setdefault("groups", {})[name] = own_keys
    for key in own_keys:
        _move_origins(config, (*here, key), ("data", "groups", name, key))
    return found


def _merged(shared: Any, own: Any) -> Any:
    """Return `own` over `shared`, key by key; null in `own` takes a shared key away."""
    if not (isinstance(shared, dict) and isinstance(own, dict)):
        return copy.deepcopy(own)
    kept = {key: copy.deepcopy(value) for key, value in shared.items() if key not in own}
    return {**kept, **{k: _merged(shared.get(k), v) for k, v in own.items() if v is not None}}


def _move_origins(config: Config, old: KeyPath, new: KeyPath, only: tuple[str, ...] = ()) -> None:
    for path, origin in list(config.origins.items()):
        if path[: len(old)] == old and (not only or path[len(old) : len(old) + 1] in [(), *((k,) for k in only)]):
            config.origins[(*new, *path[len(old) :])] = origin


def _name_members(task: Any, members_of: dict[str, list[str]]) -> None:
    arguments = task.get("init_args") if isinstance(task, dict) else None
    named = arguments.get("datasets") if isinstance(arguments, dict) else None
    if isinstance(named, list):
        arguments["datasets"] = [m for n in named for m in members_of.get(n, [n])]  # type: ignore[index]
    elif isinstance(named, dict):
        arguments["datasets"] = {m: target for n, target in named.items() for m in members_of.get(n, [n])}  # type: ignore[index]
