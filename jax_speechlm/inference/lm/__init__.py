"""Predictors of token sequences."""
