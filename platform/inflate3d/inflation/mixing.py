"""Mixing behaviour into a module in place, so that its name, hooks, parameters and state_dict keys stay its own."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Mixin:
    """What is mixed before a module's own class. The class is made at run time, so pickle and deepcopy rebuild it."""

    prefix = ""
    """What the class's name gains."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the parts of the class, which can be imported, and the module's state."""
        return _empty, parts_of(type(self)), self.__dict__


def mix(module: nn.Module, mixin: type[Mixin]) -> None:
    """Put `mixin` before the module's own class."""
    module.__class__ = mixed_class(mixin, *parts_of(type(module)))  # type: ignore[arg-type]


def unmix(module: nn.Module, mixin: type[Mixin]) -> None:
    """Take `mixin` away again, where it was mixed."""
    parts = tuple(part for part in parts_of(type(module)) if part is not mixin)
    module.__class__ = parts[0] if len(parts) == 1 else mixed_class(*parts)


@cache
def mixed_class(*parts: type) -> type:
    """Return the class of several mixins before a base; the same one for the same parts."""
    *mixins, base = parts
    name = "".join(m.prefix for m in mixins) + base.__name__  # type: ignore[attr-defined]
    return type(name, parts, {"__module__": __name__, "_parts": parts})  # type: ignore[call-overload]


def parts_of(cls: type) -> tuple[type, ...]:
    """Return the mixins and the base of a class; a class that was not mixed is its own base."""
    return cls.__dict__.get("_parts", (cls,))


def base_name(module: Any) -> str:
    """Return the name of a module's own class, whatever was mixed before it."""
    return parts_of(type(module))[-1].__name__


def _empty(*parts: type) -> Any:
    cls = mixed_class(*parts)
    return cls.__new__(cls)  # type: ignore[call-overload]
