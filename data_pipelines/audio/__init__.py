"""Decoding of audio files, stretches and channels of recordings, speed perturbation."""
