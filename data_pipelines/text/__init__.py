"""Normalisation, cleaning and deduplication of text."""
