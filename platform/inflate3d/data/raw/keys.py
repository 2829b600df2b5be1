"""Keys of cases: what a sample is called in shards and in predictions, made from names by one rule."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from inflate3d.data.raw.files import VOLUME_SUFFIXES, stem
from inflate3d.errors import InputError

MOST_BYTES = 200
"""Of a key in UTF-8: with a suffix it is still a file name."""
KEY_RULE = f"letters and digits of any script, '_' and '-', in Unicode's NFC, at most {MOST_BYTES} bytes"


def is_key(text: str) -> bool:
    """Whether a text can be a key: see KEY_RULE. A dot would end a WebDataset key, a slash is a folder."""
    return 0 < len(text.encode(errors="replace")) <= MOST_BYTES and text == _written(text)


def key_of(name: str) -> str:
    """Return the key of one name: in NFC, any character but a letter, a mark, a digit, '_' or '-' becomes '_'.

    A name whose key would be longer than MOST_BYTES is cut and ends in a hash of the whole.
    """
    key = _written(name)
    if len(key.encode()) <= MOST_BYTES:
        return key
    room = MOST_BYTES - 9
    return _written(key.encode()[:room].decode(errors="ignore")) + "-" + _hash(name)


def case_keys(names: Sequence[str], *, where: str) -> list[str]:
    """Return one key per name, each once: names that give one key ('a b' and 'a_b') get a hash of the name at the end.

    InputError for an empty name, and for a name that is listed twice, since a key must name one case.
    """
    keys = [key_of(name) for name in names]
    if not all(keys):
        raise InputError(f"{where}: a case has an empty name; every case needs its own name")
    if doubled := _doubled(names):
        raise InputError(f"{where}: {doubled[0]!r} is listed twice; each case needs a name of its own")
    shared = set(_doubled(keys))
    keys = [f"{k[: MOST_BYTES // 4]}-{_hash(n)}" if k in shared else k for n, k in zip(names, keys, strict=True)]
    if doubled := _doubled(keys):
        raise InputError(f"{where}: two cases give the key {doubled[0]!r}; rename one of them")
    return keys


def file_names(paths: Sequence[str | Path], suffixes: Iterable[str] = VOLUME_SUFFIXES) -> list[str]:
    """Return a name per path, which case_keys turns into keys.

    The file's stem; if stems repeat, for all of them the whole relative path, joined by '-' ("patient1-image"); if
    these repeat as well, with their endings.
    """
    places = [Path(path) for path in paths]
    suffixes = tuple(suffixes)
    stems = [stem(place, suffixes) for place in places]
    joined = [
        "-".join([*(p for p in place.parts[:-1] if p not in ("..", place.anchor)), name])
        for place, name in zip(places, stems, strict=True)
    ]
    whole = [str(place) for place in places]
    return next((names for names in (stems, joined) if not _doubled(names)), whole)


def _written(name: str) -> str:
    """Return the name in NFC with '_' for each character that a key may not hold."""
    kept = (c if c in "_-" or unicodedata.category(c)[0] in "LMN" else "_" for c in unicodedata.normalize("NFC", name))
    return "".join(kept)


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]


def _doubled(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
