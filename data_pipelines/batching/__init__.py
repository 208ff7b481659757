"""Batch plans as pure functions of (seed, step), and the loaders that read the planned records."""
