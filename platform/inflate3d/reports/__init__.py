"""Long measurements that are written down: the survey of architectures, the pass table, the evidence."""
