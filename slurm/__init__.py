"""SLURM: the sbatch script, what a site wants in it, and the questions asked of the queue (inflate3d.slurm)."""
