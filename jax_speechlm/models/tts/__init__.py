"""Acoustic models of speech synthesis."""
