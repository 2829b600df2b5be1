"""Checkpoints: written whole, verified before use, and the averages that go with them."""
