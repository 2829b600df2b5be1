"""Layouts of nets by name, kept in memory and in the user's cache, so that create_model looks at each net once."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

from inflate3d.errors import InputError
from inflate3d.files import write_whole
from inflate3d.inflation.layout import Layout
from inflate3d.models.publication.cache import cache_folder
from inflate3d.models.spec import NetSpec

_memory: dict[str, Layout] = {}


class KeptLayouts:
    """Layouts of nets that timm or torchvision build from one spec.

    <cache>/layouts/<sha256>.json holds one, below a line with its hash. One that is damaged, or was kept for anything
    but the very fingerprint, is not found; where the folder cannot be written, layouts last as long as the process.
    """

    def __init__(self, made_by: str, folder: Path) -> None:
        self._made_by, self._folder = made_by, folder

    @classmethod
    def of(cls, spec: NetSpec, *, pretrained: bool, cache_dir: str | Path | None = None) -> KeptLayouts | None:
        """Return those of a spec; None where its arguments are no plain values, so that nobody can tell them apart.

        pretrained: a head that begins with zeros shows less of itself than a trained one.
        """
        asked = {**spec.to_dict(), "features_only": spec.features_only, "out_indices": spec.out_indices}
        try:
            made_by = json.dumps([asked, spec.drop_path_rate, pretrained])
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
        content = json.dumps(layout.to_dict()).encode()
        _memory[name] = Layout.from_dict(json.loads(content))  # as a file gives it back, so that both ways are one
        with suppress(OSError, InputError):  # InputError: no room on the disk
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / f"{name}.json", _seal(name, content) + content)

    def _read(self, name: str) -> Layout | None:
        try:
            seal, content = _split((self._folder / f"{name}.json").read_bytes())
            return Layout.from_dict(json.loads(content)) if seal == _seal(name, content) else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def _name(self, fingerprint: str) -> str:
        return hashlib.sha256(f"{self._made_by} {fingerprint}".encode()).hexdigest()


def _seal(name: str, content: bytes) -> bytes:
    """Return the first line of a file: a hash over its name and the lines below."""
    return hashlib.sha256(name.encode() + content).hexdigest().encode() + b"\n"


def _split(file: bytes) -> tuple[bytes, bytes]:
    end = file.find(b"\n") + 1
    return file[:end], file[end:]
