"""The files of a published directory, and their format; no torch, so that a wrong path is refused at once."""

import re

FORMAT = "inflate3d-weights/2"
PREFIX = "local-dir:"
CONFIG, WEIGHTS, REPLAY, CARD, SUMS = (
    "config.json",
    "model.safetensors",
    "replay.safetensors",
    "README.md",
    "SHA256SUMS",
)
HEADS, PICTURE, PRIVATE, EXAMPLE = "heads.safetensors", "conv1.png", "PRIVATE", "example.nii.gz"
NORM_KEY, STEM_KEY = "norm_domains.", "stems."
COLOUR_KEY = f"{STEM_KEY}colour_part"
"""What the stem of RGB told apart that the stems of the file do not: inflate3d.nn.stems.colour_part_of."""

GIB = 2**30
LIMITS = {SUMS: 2**16, CONFIG: 2**22, CARD: 2**22, PRIVATE: 2**12, PICTURE: 2**24, REPLAY: GIB, HEADS: 16 * GIB}
"""The most bytes that a file may have; what LIMITS does not name may have LARGEST."""
LARGEST = 256 * GIB
MOST_FILES = 64

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def is_file_name(name: str) -> bool:
    """Is this a plain name of a file in a published directory: no path, nothing hidden, no odd letters?"""
    return _NAME.fullmatch(name) is not None and ".." not in name


def most_bytes(name: str) -> int:
    """Return the most bytes that a file of this name may have."""
    return LIMITS.get(name, LARGEST)
