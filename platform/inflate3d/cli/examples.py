"""One example of each command, with which its `--help` begins.

It runs as it stands: after the quickstart where it names its run, or on files that are called so.
"""

from __future__ import annotations

_OF_COMMANDS = {
    "finetune": "scans --minutes 10",
    "fit": "--config quickstart.yaml",
    "import-plans": "nnUNetPlans.json --output mine.yaml",
    "validate": "--config runs/quickstart/config.yaml",
    "test": "--config runs/mine/config.yaml",
    "doctor": "--config quickstart.yaml",
    "submit": "--config quickstart.yaml --nodes 2 --time 0:30:00 --dry-run",
    "status": "runs/quickstart",
    "report": "runs/quickstart",
    "predict": "runs/finetune_segmentation --input imagesTs --output predictions",
    "shards build": "toy --kind volume_segmentation --output runs/shards/toy",
    "shards merge": "runs/shards/toy",
    "shards index": "tars --mapping mapping.yaml --output runs/shards/mine",
    "shards report": "runs/quickstart/shards/toy_volumes",
    "shards check": "runs/quickstart/shards/toy_volumes",
    "shards info": "runs/quickstart/shards/toy_volumes",
    "datasets list": "",
    "datasets show": "nnunet_raw",
    "datasets preview": "toy --kind volume_segmentation --output preview.html",
    "tasks list": "",
    "models list": "'*resnet*'",
    "models show": "resnet50 --plan i3d",
    "configs list": "",
    "configs show": "quickstart.yaml",
    "transfer": "local-dir:runs/quickstart/published --root runs/quickstart/shards --dataset toy_shapes "
    "--task volume_classification --modes knn --fractions 1 --seeds 0 --output runs/transfer",
    "publish": "runs/quickstart --output local-dir:published --heads",
    "soup": "runs/seed0 runs/seed1 runs/seed2 --output local-dir:soup",
    "export": "runs/quickstart --dataset toy_volumes --format torch-export --output net.pt2",
    "plot curves": "runs/quickstart",
    "plot samples": "runs/quickstart",
    "plot filters": "runs/quickstart",
    "plot plan": "resnet50 --plan i3d slow",
}


def example_of(prog: str) -> str:
    """Return a command line for `platform`, `platform fit`, ...; for a group of commands that of its first."""
    words = prog.partition(" ")[2]
    name = next(name for name in _OF_COMMANDS if f"{name} ".startswith(f"{words} ".lstrip()))
    return f"platform {name} {_OF_COMMANDS[name]}".rstrip()
