"""Plug-ins of a stranger, as CONTRIBUTING.md tells to write them."""
