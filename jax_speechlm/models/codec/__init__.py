"""Codecs: models that turn waveforms into one sequence of discrete codes, and codes into waveforms."""
