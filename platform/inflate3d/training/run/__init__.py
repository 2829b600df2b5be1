"""The run folder: config, metrics, state, and how far a run is."""
