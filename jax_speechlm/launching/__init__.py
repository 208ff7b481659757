"""Launchers: one description of a job, translated for Cloud TPU, GKE, SkyPilot, Slurm and this machine."""
