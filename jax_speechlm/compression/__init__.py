"""Averaging and quantisation of checkpoints."""
