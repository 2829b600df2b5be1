"""Long measurements and their pages: the survey of architectures, the pass table, the evidence."""
