"""Reading a volume takes at most four times its bytes as float32 at its peak."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dicom_files import write_slice

SHAPE = (128, 128, 160)  # 10 MiB as float32
# What the first read of a tiny file of the same kind takes (libraries) is not the volume's.
READ = """
import resource, sys
from inflate3d.data.raw.readers import read_volume
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
read_volume(sys.argv[1])
before = peak()
volume = read_volume(sys.argv[2])
print((peak() - before) / (4 * volume.array.size))
"""


def write(path: Path, shape: tuple[int, ...], kind: str) -> Path:
    values = np.random.default_rng(0).integers(0, 3000, shape, dtype=np.int16)
    if kind == "dicom":
        for z in range(shape[2]):
            scale = {"RescaleSlope": 1 + z / 64, "RescaleIntercept": -1024}
            write_slice(path, z, np.ascontiguousarray(values[:, :, z].T), (0, 0, z), **scale)
        return path
    array = values.astype(np.float64) + 0.5 if kind == "float64" else values
    image = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]))
    if kind == "scaled":
        image.header.set_slope_inter(0.5, -1024.25)
    nib.save(image, path.with_suffix(".nii.gz"))
    return path.with_suffix(".nii.gz")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int16", "scaled", "float64", "dicom"])
def test_reading_takes_at_most_four_times_the_volume(tmp_path: Path, kind: str) -> None:
    small, large = write(tmp_path / "small", (8, 8, 8), kind), write(tmp_path / "large", SHAPE, kind)
    done = subprocess.run([sys.executable, "-c", READ, small, large], capture_output=True, encoding="utf-8", check=True)
    assert float(done.stdout) <= 4
