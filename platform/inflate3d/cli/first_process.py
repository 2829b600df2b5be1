"""Which of several processes prints to the user."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this process prints, according to the variables of srun and of Lightning's launcher."""
    return all(os.environ.get(rank, "0") == "0" for rank in ("LOCAL_RANK", "SLURM_PROCID"))
