"""Reading a volume takes less than four times its bytes as float32 at its peak, also where it is resampled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_files import write_slice

SHAPE = (256, 256, 64)  # 16 MiB as float32
KINDS = ["nii", "nii.gz", "nii scaled", "nii.gz float64", "dicom", "nrrd packed", "mha", "mha float32"]
SPACINGS_MM = [None, (0.9, 0.9, 0.9), (1.3, 1.1, 1.1)]
# A fresh process, as ru_maxrss begins at the parent's peak; in it a child for each read, with a peak of its own. What
# the first read of a tiny file takes (libraries) is not the volume's; a child reads it once more, as its libraries'
# pages count only when it touches them itself. Of a volume that is resampled the larger counts: that is what must be
# held in any case.
READ = """
import json, os, sys
from inflate3d.data.raw.readers import read_volume

def kibibytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))

pairs, spacings_mm, shape_size = json.load(sys.stdin)
for small, _ in pairs:
    read_volume(small, spacing_mm=(0.7, 0.7, 0.7))
for small, large in pairs:
    for spacing_mm in spacings_mm:
        if os.fork():
            assert os.wait()[1] == 0
            continue
        read_volume(small, spacing_mm=(0.7, 0.7, 0.7))
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # VmHWM begins anew
        before = kibibytes("VmRSS")
        volume = read_volume(large, spacing_mm=spacing_mm and tuple(spacing_mm))
        print((kibibytes("VmHWM") - before) * 1024 / (4 * max(volume.array.size, shape_size)), flush=True)
        os._exit(0)
"""


def write(path: Path, shape: tuple[int, ...], kind: str) -> Path:
    """Write voxels of 1 mm: integers, or halves for a kind of floats."""
    values = np.random.default_rng(0).integers(0, 3000, shape, dtype=np.int16)
    name, _, form = kind.partition(" ")
    array = values.astype(form) + np.array(0.5, form) if form.startswith("float") else values
    path = path / f"{kind}.{name}"
    if name == "dicom":
        for z in range(shape[2]):
            scale = {"RescaleSlope": 1 + z / 64, "RescaleIntercept": -1024}
            write_slice(path, z, np.ascontiguousarray(values[:, :, z].T), (0, 0, z), **scale)
    elif name in ("nrrd", "mha"):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=form == "packed")
    else:
        image = nib.Nifti1Image(array, np.diag([-1.0, -1, 1, 1]))
        if form == "scaled":
            image.header.set_slope_inter(0.5, -1024.25)
        nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, object], float]:
    folders = [tmp_path_factory.mktemp(name) for name in ("small", "large")]
    shapes = [(8, 8, 8), SHAPE]
    pairs = [[str(write(f, s, kind)) for f, s in zip(folders, shapes, strict=True)] for kind in KINDS]
    question = json.dumps([pairs, SPACINGS_MM, int(np.prod(SHAPE))])
    command = [sys.executable, "-P", "-c", READ]
    # As for arrays past 32 MiB, whatever came before (mallopt(3)): what is freed leaves the process.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17)}
    done = subprocess.run(command, input=question, capture_output=True, encoding="utf-8", check=True, env=environment)
    cases = [(kind, spacing_mm) for kind in KINDS for spacing_mm in SPACINGS_MM]
    return dict(zip(cases, map(float, done.stdout.split()), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a peak that begins anew is read from Linux's /proc")
@pytest.mark.parametrize("spacing_mm", SPACINGS_MM, ids=["as it is", "finer", "coarser"])
@pytest.mark.parametrize("kind", KINDS)
def test_reading_takes_less_than_four_times_the_volume(peaks: dict, kind: str, spacing_mm: object) -> None:
    assert 0.4 < peaks[kind, spacing_mm] < 4  # int16 stays int16: half
