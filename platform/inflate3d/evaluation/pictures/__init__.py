"""Pictures: curves, samples, filters, plans and raw cases; and the names of those that lie in a run's folder."""

PICTURE, PREDICTIONS, FILTERS = "pictures.png", "predictions", "filters.png"
"""Curves and samples of a checkpoint; a folder of samples, a picture a validation; the first filters."""
