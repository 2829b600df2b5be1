"""`platform doctor --config FILE`: is everything in place, where does a run spend its time, and what does it cost?"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from inflate3d.cli.table import print_table

if TYPE_CHECKING:
    from inflate3d.training import DataModule

_PACKAGES = ("torch", "torchvision", "timm", "lightning", "torchio", "av", "webdataset", "blosc2", "numpy")


def add_parser(subparsers: Any) -> None:
    """Add `platform doctor`."""
    text = "check a config's shards and machine before a run, and measure what loading, a step and the whole run cost"
    parser = subparsers.add_parser(
        "doctor",
        help=text,
        description=text,
        allow_abbrev=False,
        usage="platform doctor --config FILE [--config FILE ...] [--samples N] [--repeats N] [--KEY.SUBKEY VALUE ...]",
    )
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help="a config; may be repeated")
    parser.add_argument(
        "--samples", type=int, default=64, metavar="N", help="samples measured per dataset (default 64)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="micro-batches trained per dataset (default 3; 0: none)"
    )
    parser.set_defaults(run=_run, takes_overrides=True)


def _run(args: argparse.Namespace) -> None:
    from inflate3d.cli.check import check_config
    from inflate3d.cli.config import load_config
    from inflate3d.errors import InputError

    if not args.config:
        raise InputError("platform doctor: no --config. Try: platform doctor --config quickstart.yaml")
    if args.samples < 1:
        raise InputError(f"--samples is {args.samples}; it must be at least 1")
    if args.repeats < 0:
        raise InputError(f"--repeats is {args.repeats}; it must not be negative")
    config = load_config(args.config, args.overrides)
    check_config(config)
    print(f"config: {', '.join(str(path) for path in config.files)}: all checks passed\n")
    _print_machine()
    from inflate3d.training import DataModule  # torch, from here on

    data = DataModule(**{"seed": int(config.get("seed_everything", default=0)), **config.get("data")}).prepare()
    _print_shards(data)
    _print_first_batches(data)
    loading_ms = _print_loading(data, args.samples)
    if args.repeats:
        from inflate3d.cli.run_cost import print_run_cost

        print_run_cost(config, data, args.repeats, loading_ms)


def _print_machine() -> None:
    """Print versions and devices."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    cores = len(os.sched_getaffinity(0))
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    told = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in gpus) or "none"
    print(f"versions: Python {platform.python_version()}, {', '.join(found)}")
    print(f"devices: {cores} CPU cores for this process; GPUs: {told}\n")


def _print_shards(data: DataModule) -> None:
    """Print where the shards are. Raises InputError if a local shard is missing or has the wrong size."""
    from inflate3d.data.shards.check import check_sizes
    from inflate3d.remote.address import shown

    rows, faults = [], []
    for name, manifest in data.manifests.items():
        size = sum(entry.bytes for entry in manifest.shards)
        samples = "/".join(str(manifest.num_samples(split)) for split in ("train", "val", "test"))
        rows.append((name, len(manifest.shards), f"{size / 1e6:.1f} MB", samples, shown(data.shards_of(name))))
        faults += check_sizes(data.shards_of(name), manifest)
    print_table(("dataset", "shards", "size", "train/val/test", "where"), rows)
    if faults:
        from inflate3d.errors import InputError

        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError("\n".join(faults[:3]) + f"{more}\nRepair them with the command that built them")
    print("every shard has the size stated in its manifest; to check hashes: platform shards check DIR\n")


def _print_first_batches(data: DataModule) -> None:
    """Print the first training batch of each dataset."""
    from inflate3d.data.stream.batches import TrainStream

    stream = TrainStream({name: data.source(name, "train") for name in data.datasets}, data.mixture)
    rows, seen = [], set()
    for number in range(data.mixture.cycle):
        if data.mixture.at(number)[0] in seen:
            continue
        batch = stream.batch(number)
        seen.add(batch.dataset)
        low, middle, high = (float(v) for v in (batch.image.min(), batch.image.mean(), batch.image.max()))
        shape = "x".join(map(str, batch.image.shape))
        targets = ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in batch.targets.items())
        rows.append(
            (batch.dataset, shape, f"{low:.2f} / {middle:.2f} / {high:.2f}", targets, ", ".join(batch.keys[:3]))
        )
        if len(seen) == len(data.datasets):
            break
    print_table(("first batch of", "image", "min / mean / max", "targets", "keys"), rows)
    print()


def _print_loading(data: DataModule, num_samples: int) -> float:
    """Print milliseconds per sample by stage; print and return the shortest step that loading keeps up with.

    In milliseconds per global micro-batch, with the workers of one rank.
    """
    from inflate3d.data.stream.stage_times import STAGES, measure_stages

    rows, micro_batch_ms = [], 0.0
    spent: dict[tuple[str, str], float] = {}
    for name, config in data.datasets.items():
        times = measure_stages(data.source(name, "train"), num_samples)
        rows.append((name, *(f"{times.milliseconds[s]:.2f}" for s in STAGES), f"{times.total:.2f}", times.broken))
        share = data.mixture.shares[name]
        micro_batch_ms += share * config.batch_size * times.total
        spent |= {(name, s): share * config.batch_size * times.milliseconds[s] for s in STAGES}
    print(f"loading, milliseconds per sample in one process ({num_samples} samples per dataset):")
    print_table(("dataset", *STAGES, "total", "broken"), rows)
    workers = max(1, data.num_workers)
    (name, stage), most = max(spent.items(), key=lambda item: item[1])
    print(
        f"a global micro-batch takes {micro_batch_ms:.1f} ms to load on average, {micro_batch_ms / workers:.1f} ms "
        f"by the loading processes of one rank ({workers}) if each has a core.\n"
        "A faster training step would wait for data, "
        f"mostly for {stage} of {name} ({most / micro_batch_ms:.0%} of the loading)."
    )
    if data.num_workers > (cores := len(os.sched_getaffinity(0))):
        print(f"warning: data.num_workers is {data.num_workers}, and this process has {cores} cores")
    return micro_batch_ms / workers
