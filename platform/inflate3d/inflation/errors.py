"""What is raised where a net cannot be inflated."""


class InflationError(RuntimeError):
    """The inflated net does not answer as the 2D net on a static clip; it names the first layer that differs."""
