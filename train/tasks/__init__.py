"""Trained networks with their data as tasks, which configs name."""
