"""SLURM: the sbatch script, a site's settings, and queries to the queue (inflate3d.slurm)."""
