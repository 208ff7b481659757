"""Predictors that return transcripts."""
