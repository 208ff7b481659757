"""Applications that combine training, inference and evaluation."""
