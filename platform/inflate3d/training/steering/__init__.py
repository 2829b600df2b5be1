"""What watches a run and stops it: signals, the cluster, exploding losses."""
