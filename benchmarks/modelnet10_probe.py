"""Frozen linear probe on ModelNet10: chooses among a run's checkpoints, and compares with scratch and inflated-only.

    python benchmarks/modelnet10_probe.py --run runs/lite0_medical --dataset adrenal --root DATA/modelnet10 \\
        --weights_2d DATA/weights/tf_efficientnet_lite0.in1k.safetensors --output runs/lite0_medical/probe.json

The nets stay frozen; a multinomial logistic regression on their pooled features is fitted to 370 training models (a
tenth), drawn anew by each probe seed from 500. Its penalty, and the checkpoint, are chosen on 200 other training
models; dev, 273 models, is read for what was chosen and for the last. Beside: the same with BatchNorm statistics from
240 unlabelled models; scratch, whose own statistics have seen no data, has those alone.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from inflate3d.datasets.modelnet10 import ModelNet10
from inflate3d.models import create_model
from inflate3d.publishing.from_run import split_domains
from inflate3d.training.checkpoints.store import Checkpoint, checkpoints_folder, list_checkpoints
from inflate3d.training.run.folder import read_run_config
from inflate3d.training.run.saved import load_module
from torch import Tensor, nn

LABELS, POOL, VALIDATION = 370, 500, 200
PROBE_SEEDS, SCRATCH_SEEDS = range(5), range(3)
PENALTIES = (1e-3, 1e-2, 1e-1)
METRIC = f"ModelNet10 dev accuracy, frozen linear probe, {LABELS} labels"
BATCH, EVERY = 24, 100

Split = tuple[Tensor, Tensor]
"""Grids or features (N, ...) and classes (N,)."""


def main() -> None:
    """Measure every arm and print, then write, one row each."""
    arguments = _arguments()
    data = read_splits(arguments.root)
    backbone = read_run_config(arguments.run)["model"]["backbone"]
    options = {k: v for k, v in (backbone.get("timm_kwargs") or {}).items() if k != "pretrained_cfg_overlay"}
    overlay = {"pretrained_cfg_overlay": {"file": arguments.weights_2d}}

    def inflated(**more: Any) -> nn.Module:
        return create_model(backbone["name"], in_chans=1, num_classes=0, **options, **more)

    arms: dict[str, list[nn.Module]] = {"scratch": []}
    for seed in SCRATCH_SEEDS:
        torch.manual_seed(seed)
        arms["scratch"].append(inflated(inflation="random"))
    arms["inflated only"] = [inflated(pretrained=True, inflation=backbone.get("inflation", "center"), **overlay)]
    step, chosen = choose_checkpoint(arguments.run, arguments.dataset, data)
    arms[f"pretrained, step {step} (chosen by validation)"] = [chosen]
    last = list_checkpoints(checkpoints_folder(arguments.run))[-1]
    if last.step != step:
        arms[f"pretrained, step {last.step} (the last)"] = [net_of(arguments.run, last, arguments.dataset)]
    rows = []
    for start, nets in arms.items():
        for suffix, recalibrates in (("", False), (", BatchNorm recalibrated", True)):
            if start == "scratch" and not recalibrates:
                continue
            found = [a for net in nets for a in dev_accuracies(recalibrated(net, data) if recalibrates else net, data)]
            rows.append(
                {
                    "start": start + suffix,
                    "metric": METRIC,
                    "mean": statistics.mean(found),
                    "std": statistics.stdev(found),
                    "runs": len(found),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    Path(arguments.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def read_splits(root: str) -> dict[str, Split]:
    """Return the pool (probes and BatchNorm), validation, and dev, each grid (1, 32, 32, 32) in -1..1."""
    dataset = ModelNet10(root)
    cases: Mapping[str, list[Any]] = {s: [c for c in dataset.cases() if c.split == s] for s in ("train", "val")}
    order = torch.randperm(len(cases["train"]), generator=torch.Generator().manual_seed(0)).tolist()
    picked = {
        "pool": [cases["train"][i] for i in order[:POOL]],
        "validation": [cases["train"][i] for i in order[POOL : POOL + VALIDATION]],
        "dev": cases["val"],
    }
    found = {}
    for name, chosen in picked.items():
        samples = [dataset.read(case) for case in chosen]
        grids = torch.stack([torch.from_numpy(sample.image).float() for sample in samples])
        grids = nn.functional.interpolate(grids, (32, 32, 32), mode="trilinear")
        found[name] = (2 * grids - 1, torch.tensor([sample.label for sample in samples]))
    return found


def choose_checkpoint(run: str, dataset: str, data: Mapping[str, Split]) -> tuple[int, nn.Module]:
    """Return the step and the net, with a dataset's stem and statistics, of the highest mean validation accuracy.

    Tried with recalibrated statistics, as a domain that training has not seen is to be used.
    """
    best: tuple[float, int, nn.Module] | None = None
    for checkpoint in list_checkpoints(checkpoints_folder(run)):
        if checkpoint.step % EVERY:
            continue
        net = net_of(run, checkpoint, dataset)
        tried = recalibrated(copy.deepcopy(net), data)
        pool, validation = features(tried, data["pool"]), features(tried, data["validation"])
        score = statistics.mean(probe(pool, validation, seed)[0] for seed in PROBE_SEEDS)
        print(f"step {checkpoint.step}: validation {score:.4f}", flush=True)
        if best is None or score > best[0]:
            best = (score, checkpoint.step, net)
    assert best is not None, f"{run} holds no checkpoint"
    return best[1:]


def net_of(run: str, checkpoint: Checkpoint, dataset: str) -> nn.Module:
    """Return a checkpoint's net with a dataset's stem and statistics."""
    return split_domains(load_module(run, str(checkpoint.path)).backbone, dataset)[0]


def dev_accuracies(net: nn.Module, data: Mapping[str, Split]) -> list[float]:
    """Return the accuracy on dev of each probe seed."""
    pool, validation, dev = (features(net, data[name]) for name in ("pool", "validation", "dev"))
    return [probe(pool, validation, seed, dev)[1] for seed in PROBE_SEEDS]


@torch.no_grad()
def features(net: nn.Module, split: Split) -> Split:
    """Return the pooled features (N, F) in float64."""
    net.eval()
    return torch.cat([net(batch) for batch in split[0].split(BATCH)]).double(), split[1]


@torch.no_grad()
def recalibrated(net: nn.Module, data: Mapping[str, Split]) -> nn.Module:
    """Give the net the mean statistics of 240 unlabelled models of the pool, in place."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain mean
    net.train()
    for batch in data["pool"][0][:240].split(BATCH):
        net(batch)
    return net


def probe(pool: Split, validation: Split, seed: int, dev: Split | None = None) -> tuple[float, float]:
    """Return the accuracy on validation, of the penalty that is best there, and on dev (0 without)."""
    index = torch.randperm(len(pool[0]), generator=torch.Generator().manual_seed(seed))[:LABELS]
    x, y = pool[0][index], pool[1][index]
    mean, std = x.mean(0), x.std(0) + 1e-6
    # The penalised solution lies in the span of the samples, which has fewer dimensions than the features.
    span = torch.linalg.svd((x - mean) / std, full_matrices=False).Vh.T
    fitted, *read = [(s - mean) / std @ span for s in (x, validation[0], *([dev[0]] if dev else []))]
    truths = [validation[1], *([dev[1]] if dev else [])]
    best = (-1.0, 0.0)
    for penalty in PENALTIES:
        classifier = fit(fitted, y, penalty)
        scores = [_accuracy(classifier, s, truth) for s, truth in zip(read, truths, strict=True)] + [0.0]
        if scores[0] > best[0]:
            best = (scores[0], scores[1])
    return best


def fit(x_NF: Tensor, y_N: Tensor, penalty: float) -> nn.Linear:
    """Return the logistic regression that minimises cross-entropy + penalty / 2 |w|^2."""
    classifier = nn.Linear(x_NF.shape[1], int(y_N.max()) + 1).double()
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    optimizer = torch.optim.LBFGS(classifier.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(classifier(x_NF), y_N) + penalty / 2 * classifier.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return classifier


@torch.no_grad()
def _accuracy(classifier: nn.Linear, x_NF: Tensor, y_N: Tensor) -> float:
    return (classifier(x_NF).argmax(1) == y_N).double().mean().item()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", required=True, help="a run folder, with the checkpoints to choose from")
    parser.add_argument("--dataset", required=True, help="whose stem and statistics are taken: one of the run's masks")
    parser.add_argument("--root", required=True, help="the folder of modelnet20.npz")
    parser.add_argument("--weights_2d", required=True, help="safetensors file of the 2D weights")
    parser.add_argument("--output", required=True, metavar="FILE.json", help="for platform publish --results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
