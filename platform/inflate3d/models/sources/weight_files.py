"""A file of weights from elsewhere: found on disk, on the Hub or behind an address, and brought to safetensors once.

<cache>/weights/files/<name>-<hash of the address>.<ending> holds what was fetched, and
<cache>/weights/turned/<sha256>.safetensors what a pickled file held. Pickles are read with weights_only=True, so that
nothing in them runs. Names such as r3d_18-b3b3357e.pth hold the beginning of their file's sha256.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from inflate3d.errors import InputError
from inflate3d.files import file_sha256, told_when_full
from inflate3d.models.publication.cache import cache_folder, is_offline
from inflate3d.models.publication.hub import hub_file
from inflate3d.models.publication.layout import LARGEST
from inflate3d.models.publication.places import HUB, SCHEMES
from inflate3d.models.publication.tensor_file import read_header, read_tensors
from inflate3d.remote.address import Address
from inflate3d.remote.client import fetch_whole

_log = logging.getLogger("inflate3d")
_WRAPPED = ("state_dict", "model_state", "model_state_dict", "model")
"""Where checkpoints keep their weights, beside other things."""


def read_weights(place: str, *, cache_dir: str | Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file of weights, by the names that they have in there.

    place: a path, "hf-hub:org/name[@revision]/file", "https://...", "http://..." or "s3://...". InputError where it
    cannot be had, or holds no weights.
    """
    file = local_file(place, cache_dir=cache_dir)
    if file.suffix != ".safetensors":
        file = _turned(file, place, cache_folder(cache_dir) / "weights" / "turned")
    read_header(file)
    return read_tensors(file)


def local_file(place: str, *, cache_dir: str | Path | None = None) -> Path:
    """Return the file on disk; what lies elsewhere is fetched once. InputError where there is none."""
    if place.startswith(HUB):
        return hub_file(place, cache_dir=cache_dir)
    if place.startswith(SCHEMES):
        return _fetched(Address.parse(place), cache_folder(cache_dir) / "weights" / "files")
    if not (file := Path(place).expanduser()).is_file():
        raise InputError(f"no file {place!r}; expected weights (.safetensors, .pth, .pt, ...), or an address of such")
    return file


def _fetched(address: Address, folder: Path) -> Path:
    """Fetch a file that nothing vouches for but its server; the copy that is there is used without asking."""
    digest = hashlib.sha256(address.url.encode()).hexdigest()[:12]
    stem, dot, ending = address.name.rpartition(".")
    file = folder / f"{stem}-{digest}{dot}{ending}"
    if file.is_file():
        return file
    if is_offline():
        raise InputError(f"{address}: no copy in {folder}, and the environment says: offline")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{digest}.lock"), told_when_full(folder, "Free some, or name another folder: cache_dir="):
        if not file.is_file():
            partial = folder / f".part-{digest}"
            fetch_whole(address, partial, limit=LARGEST)
            _check_name(partial, address)
            partial.replace(file)
            _log.info("fetched %s to %s", address, file)
    return file


def _check_name(file: Path, address: Address) -> None:
    """InputError where the name ends in the hash of another file."""
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", address.name)
    if match and not (found := file_sha256(file)).startswith(match[1]):
        file.unlink()
        raise InputError(f"{address}: what came has sha256 {found[:16]}..., not that of its name; try again")


def _turned(file: Path, place: str, folder: Path) -> Path:
    """Return a pickled file's tensors as safetensors, made at the first time."""
    turned = folder / f"{file_sha256(file)}.safetensors"
    if turned.is_file():
        return turned
    tensors = _unpickled(file, place)
    folder.mkdir(parents=True, exist_ok=True)
    with told_when_full(folder, "Free some, or name another folder: cache_dir="):
        staged = folder / f".{turned.stem}-{os.getpid()}"
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, staged)
        staged.replace(turned)
    return turned


def _unpickled(file: Path, place: str) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as fault:
        raise InputError(
            f"{place}: is no plain file of weights: {str(fault).strip().splitlines()[0][:200]} Nothing of it was run. "
            "Load it where it was made, and save its tensors: safetensors.torch.save_file(model.state_dict(), FILE)"
        ) from fault
    except (RuntimeError, EOFError, OSError) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0][:160]
        raise InputError(f"{place}: is damaged or no file of torch ({said})") from fault
    wrapped = next((content[k] for k in _WRAPPED if isinstance(content, Mapping) and k in content), content)
    tensors = {k: v for k, v in wrapped.items() if isinstance(v, Tensor)} if isinstance(wrapped, Mapping) else {}
    if not tensors:
        raise InputError(f"{place}: holds no mapping of names to tensors, itself or under {', '.join(_WRAPPED)}")
    return tensors
