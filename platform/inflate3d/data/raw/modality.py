"""The modality of volumes whose files do not state it, guessed from their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_READ = 3
_AIR_HU = -1000  # by the definition of the Hounsfield unit; fat is at -100, and no MRI is stored so far below 0


def guess_modality(files: Sequence[Path]) -> str:
    """Return "mask" where volumes hold 0 and one other value at most, "ct" where one reaches half of air, or "mri".

    files: of which three, evenly spaced, are read; InputError for one that cannot be. "mri" is any other scanner too:
    it says that each volume's intensities have a scale of their own.
    """
    from inflate3d.data.raw.readers import read_volume

    some = [files[i] for i in np.linspace(0, len(files) - 1, min(_READ, len(files))).round().astype(int)]
    arrays = [read_volume(file, orientation=None).array for file in some]
    values = np.unique(np.concatenate([np.unique(array) for array in arrays]))
    if len(values) <= 2 and 0 in values:
        return "mask"
    return "ct" if values[0] <= _AIR_HU / 2 else "mri"
