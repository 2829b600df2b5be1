"""Which process of several talks to the user."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the one process of several that prints: by the variables of srun and of Lightning's launcher."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_PROCID"))
