"""The architectures that timm and torchvision register, read from source: importing timm takes five seconds."""

from __future__ import annotations

import re
from functools import cache

from inflate3d.cli.signatures import module_file
from inflate3d.contracts import find_zoo, zoo_names
from inflate3d.errors import unknown_name
from inflate3d.models.publication.index import list_pretrained

_REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)", re.MULTILINE | re.DOTALL)


def check_model_name(name: str, *, where: str) -> None:
    """Raise InputError with close names for an architecture that neither library registers.

    Names with a scheme ("hf-hub:org/name", "https://...") are not checked; timm itself checks the tag after the dot.
    """
    package, slash, rest = name.partition("/")
    if ":" in name or find_zoo(name) is not None:
        return
    if slash and package != "torchvision":
        raise unknown_name("model", name, zoo_names(), where=where, see="platform models list")
    published = [] if slash else list_pretrained()
    if name in published:
        return
    known = architectures("torchvision" if slash else "timm")
    architecture = rest if slash else name.partition(".")[0]
    if known and architecture not in known:
        allowed = [*known, *published, *zoo_names()]
        raise unknown_name("model", rest if slash else name, allowed, where=where, see="platform models list")


@cache
def architectures(package: str) -> frozenset[str]:
    """Return the names registered in `package`.models ("timm" or "torchvision"); empty if it cannot be read."""
    init = module_file(f"{package}.models")
    # Of torchvision, the folders hold nets for other things than images (detection, flow, video).
    files = [] if init is None else init.parent.glob("*.py" if package == "torchvision" else "**/*.py")
    return frozenset(name for file in files for name in _REGISTERED.findall(file.read_text(encoding="utf-8")))
