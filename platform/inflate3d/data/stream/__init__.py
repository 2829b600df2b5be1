"""Data in motion: the order of samples, the mixture of datasets, and the batches of a run."""
