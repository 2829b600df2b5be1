"""The files of a published directory, and their format; no torch, so that a wrong path is refused at once."""

FORMAT = "inflate3d-weights/1"
PREFIX = "local-dir:"
CONFIG, WEIGHTS, REPLAY, CARD, SUMS = (
    "config.json",
    "model.safetensors",
    "replay.safetensors",
    "README.md",
    "SHA256SUMS",
)
PRIVATE = "PRIVATE"
NORM_KEY, STEM_KEY = "norm_domains.", "stems."
