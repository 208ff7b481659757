"""Comparisons of a folder with its checkpoint, by transformers."""
