"""Verification of Hugging Face folders against checkpoints: `check` runs the comparisons that `table` lists."""
