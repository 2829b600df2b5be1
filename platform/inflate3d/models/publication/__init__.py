"""Published weights: their directory, its checks, where it may lie, and how it becomes a net."""
