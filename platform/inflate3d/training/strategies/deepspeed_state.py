"""Weights and optimiser states between DeepSpeed's shards and the format of an ordinary run.

Everything here is called by all ranks at the same time. DeepSpeed's documented calls for debugging give and take one
parameter's float32 value and states; what they leave out (padding in ZeRO-3, states before the first step) is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inflate3d.errors import InputError

Groups = Sequence[Sequence[Tensor]]


def gather_module(module: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return the whole state_dict of a sharded module on the CPU where `keep`, else {}."""
    found: dict[str, Tensor] = {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in module.state_dict():
        whole = _whole(parameters[name]) if name in parameters else module.get_buffer(name)
        if keep:
            found[name] = whole.detach().cpu().clone()
    return found


def gather_optimizer(optimizer: Any, groups: Groups, *, keep: bool) -> dict[str, Any]:
    """Return the state_dict of the plain optimiser over the unsharded groups where `keep`, else {}."""
    from deepspeed.utils import safe_get_full_optimizer_state

    inner = optimizer.optimizer
    _link_states(optimizer)
    found: dict[int, dict[str, Any]] = {}
    index = 0
    for number, group in enumerate(groups):
        flat = _flats(optimizer, number)[0]
        template = inner.state.get(flat, {})
        for parameter in group:
            entry: dict[str, Any] = {}
            for key, value in template.items():
                if isinstance(value, Tensor) and value.shape == flat.shape:
                    whole = safe_get_full_optimizer_state(parameter, key)
                    value = whole.view(_shape(parameter)).cpu().clone() if keep else None
                elif isinstance(value, Tensor):
                    value = value.detach().cpu().clone()
                entry[key] = value
            if entry:
                found[index] = entry
            index += 1
    if not keep:
        return {}
    return {"state": found, "param_groups": _plain_groups(inner.param_groups, groups)}


def scatter_module(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Load a whole state_dict into a sharded module, with the float32 copies that the optimiser holds."""
    names = set(module.state_dict())
    if names != set(saved):
        missing, extra = sorted(names - set(saved)), sorted(set(saved) - names)
        raise InputError(f"the checkpoint does not fit the config: missing {missing[:3]}, unknown {extra[:3]}")
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in saved.items():
            if name in parameters:
                _set_whole(parameters[name], value)
            else:
                module.get_buffer(name).copy_(value)


def scatter_optimizer(optimizer: Any, groups: Groups, saved: Mapping[str, Any]) -> None:
    """Load the state_dict of a plain optimiser. InputError where it has other groups."""
    sizes = [len(group["params"]) for group in saved["param_groups"]]
    if sizes != [len(group) for group in groups]:
        raise InputError(f"the checkpoint's optimiser has groups of {sizes} parameters, this run's others")
    inner = optimizer.optimizer
    index = 0
    keys: list[set[str]] = []
    for number, group in enumerate(groups):
        entries = [saved["state"].get(index + i, {}) for i in range(len(group))]
        index += len(group)
        inner.param_groups[number].update({k: v for k, v in saved["param_groups"][number].items() if k != "params"})
        keys.append(_elementwise_keys(entries, group))
        for flat in _flats(optimizer, number) if entries[0] else ():
            inner.state[flat] = {
                key: torch.zeros_like(flat) if key in keys[number] else _copy(value)
                for key, value in entries[0].items()
            }
    _link_states(optimizer)
    index = 0
    for number, group in enumerate(groups):
        for parameter in group:
            for key in keys[number]:
                _set_state(parameter, key, saved["state"][index][key])
            index += 1


def register_direct_parameters(module: nn.Module) -> None:
    """Tell ZeRO-3 of parameters that a net uses outside of any layer (position embeddings, class tokens).

    Nets are asked for their intermediate maps, not called, so ZeRO-3 gathers these with the module that asks.
    """
    from deepspeed.runtime.zero import register_external_parameter

    backbone: Any = module.backbone
    for parameter in backbone.net.parameters(recurse=False):
        register_external_parameter(backbone.intermediates, parameter)


def _whole(parameter: Tensor) -> Tensor:
    """Return the float32 value of a parameter, wherever its shards are."""
    from deepspeed.runtime.zero import GatheredParameters
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad or not (hasattr(parameter, "_z3_optimizer") or hasattr(parameter, "_hp_mapping")):
        if not hasattr(parameter, "ds_id"):
            return parameter.data
        with GatheredParameters([parameter]):
            return parameter.data.clone()
    return safe_get_full_fp32_param(parameter).view(_shape(parameter))


def _set_whole(parameter: Any, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    value = value.to(parameter.device, torch.float32)
    if hasattr(parameter, "ds_id"):
        mine = _own_part(parameter, value)
        parameter.ds_tensor.data.copy_(mine)
        if parameter.requires_grad and hasattr(parameter, "_z3_optimizer"):
            safe_set_local_fp32_param(parameter, mine)
        return
    parameter.data.copy_(value)
    if hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, value)


def _set_state(parameter: Any, key: str, value: Tensor) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    value = value.to(parameter.device, torch.float32)
    if hasattr(parameter, "ds_id"):
        safe_set_local_optimizer_state(parameter, _own_part(parameter, value), key)
    else:
        safe_set_full_optimizer_state(parameter, value, key)


def _own_part(parameter: Any, value: Tensor) -> Tensor:
    """Return this rank's part of a whole value under ZeRO-3, padded as DeepSpeed pads the last one."""
    size, ranks = parameter.partition_numel(), torch.distributed.get_world_size()
    padded = torch.zeros(size * ranks, dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    return padded.narrow(0, size * torch.distributed.get_rank(), size)


def _flats(optimizer: Any, group: int) -> list[Tensor]:
    """Return the flat tensors that the inner optimiser steps for one group of parameters."""
    if hasattr(optimizer, "single_partition_of_fp32_groups"):
        return [optimizer.single_partition_of_fp32_groups[group]]
    of_group = optimizer.sub_group_to_group_id
    return [flat for i, flat in enumerate(optimizer.fp32_partitioned_groups_flat) if of_group[i] == group]


def _plain_groups(inner: Sequence[Mapping[str, Any]], groups: Groups) -> list[dict[str, Any]]:
    plain, index = [], 0
    for options, group in zip(inner, groups, strict=True):
        plain.append(
            {
                **{k: v for k, v in options.items() if k != "params"},
                "params": list(range(index, index + len(group))),
            }
        )
        index += len(group)
    return plain


def _link_states(optimizer: Any) -> None:
    """Let ZeRO-1 and 2 find each parameter's states: by themselves they link before the second group has any."""
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def _elementwise_keys(entries: Sequence[Mapping[str, Any]], group: Sequence[Tensor]) -> set[str]:
    """Return the states that have the shape of their parameter, for every parameter of a group."""
    return {
        key
        for key in entries[0]
        if all(
            isinstance(e.get(key), Tensor) and e[key].shape == _shape(p) for e, p in zip(entries, group, strict=True)
        )
    }


def _shape(parameter: Any) -> torch.Size:
    return parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
