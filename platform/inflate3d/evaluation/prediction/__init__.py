"""Answers for raw files: who answers, what is written, and how good it is."""
