"""Vocoders: models that compute waveforms from mel spectrograms."""
