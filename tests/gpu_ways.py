"""The ways that convolutions take on a GPU, taken on the CPU, where there is something to compare them with."""

from __future__ import annotations

from inflate3d.inflation import convolution, layers, ways


def take_gpu_ways(monkeypatch) -> None:
    """Until the test ends, choose as if every tensor were on a GPU."""
    for module in (convolution, layers, ways):
        monkeypatch.setattr(module, "is_eager_on_cpu", lambda x: False)
    for module in (layers, ways):
        monkeypatch.setattr(module, "is_on_gpu", lambda x: True)
