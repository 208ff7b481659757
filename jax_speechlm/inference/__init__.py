"""Predictors: trained checkpoints that transcribe, embed, classify, segment or generate."""
