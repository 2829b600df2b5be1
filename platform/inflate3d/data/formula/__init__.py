"""Formula-driven data: volumes and clips that are a pure function of a seed and an index."""
