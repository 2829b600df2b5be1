"""Strategies of the trainer beyond its own: DeepSpeed, with checkpoints like any other run."""
