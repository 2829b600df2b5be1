"""Layouts of nets by name, kept in memory and in the user's cache, so that create_model looks at each net once."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from inflate3d.files import sealed, unsealed, write_whole
from inflate3d.inflation.layout import Layout
from inflate3d.models.publication.cache import cache_folder
from inflate3d.models.spec import NetSpec

_memory: dict[str, Layout] = {}
_KEYS = [f.name for f in fields(Layout)]


class KeptLayouts:
    """Layouts of nets that timm or torchvision build from one spec.

    <cache>/layouts/<sha256>.json holds one, with a hash over itself. One that is damaged, or was kept for anything but
    the very fingerprint, is not found; where the folder cannot be written, layouts last as long as the process.
    """

    def __init__(self, made_by: str, folder: Path) -> None:
        self._made_by, self._folder = made_by, folder

    @classmethod
    def of(cls, spec: NetSpec, cache_dir: str | Path | None = None) -> KeptLayouts | None:
        """Return those of a spec; None where its arguments are no plain values, so that nobody can tell them apart."""
        asked = {**spec.to_dict(), "features_only": spec.features_only, "out_indices": spec.out_indices}
        try:
            made_by = json.dumps([asked, spec.drop_path_rate])
        except TypeError:
            return None
        return cls(made_by, cache_folder(cache_dir) / "layouts")

    def find(self, fingerprint: str) -> Layout | None:
        """Return what was kept, by this process or before."""
        name = self._name(fingerprint)
        if name not in _memory and (found := self._read(name)) is not None:
            _memory[name] = found
        return _memory.get(name)

    def keep(self, fingerprint: str, layout: Layout) -> None:
        """Keep a layout for this process and later ones."""
        name = self._name(fingerprint)
        # As JSON gives it back, so that both ways are one.
        _memory[name] = Layout.from_dict(json.loads(json.dumps(layout.to_dict())))
        with suppress(OSError, ValueError):  # ValueError: no room on the disk, as an InputError
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{name}.json", sealed({"name": name, **layout.to_dict()}))

    def _read(self, name: str) -> Layout | None:
        try:
            values, has_seal = unsealed((self._folder / f"{name}.json").read_bytes(), keys=_KEYS)
            return Layout.from_dict(_of(values, name)) if has_seal else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _name(self, fingerprint: str) -> str:
        return hashlib.sha256(f"{self._made_by} {fingerprint}".encode()).hexdigest()


def _of(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a layout's own values. ValueError where the file was kept for another net."""
    if values.pop("name") != name:
        raise ValueError("kept for another net")
    return values
