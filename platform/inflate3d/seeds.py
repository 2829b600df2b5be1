"""Seeds: one 64-bit number from any parts, and the random numbers that follow from it.

Everything random in the data (order, crops, augmentation) is drawn from `mix(seed, ..., epoch, sample)`, never from a
process's own generator, so that it does not depend on workers, ranks or where a run was resumed.
"""

from __future__ import annotations

import hashlib

import numpy as np


def mix(*parts: int | str) -> int:
    """Return a 64-bit number that depends on every part and on their order; the same on every machine and version."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(*parts: int | str) -> np.random.Generator:
    """Return a NumPy generator of its own for these parts."""
    return np.random.Generator(np.random.PCG64(mix(*parts)))


def permutation(size: int, *parts: int | str) -> np.ndarray:
    """Return a permutation of 0..size-1 (int64) drawn from these parts.

    Sorts the raw words of PCG64: NumPy promises their stream across versions, which it does not for Generator's own
    `permutation`, and an order must survive an upgrade between two halves of a run.
    """
    words = np.random.PCG64(mix(*parts)).random_raw(size)
    order = np.argsort(words)  # several times faster than a stable sort, and equal to it where no two words are
    ranked = words[order]
    return np.argsort(words, kind="stable") if (ranked[1:] == ranked[:-1]).any() else order
