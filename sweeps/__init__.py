"""Sweeps: files for W&B's agents, and a search of our own with two objectives."""
