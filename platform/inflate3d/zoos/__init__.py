"""Zoos: one file each, the nets of one publisher with their weights; the file's name comes first in theirs."""
