"""Objectives that train a head on labelled utterances, texts or frames."""
