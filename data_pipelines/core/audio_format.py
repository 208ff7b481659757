"""The format of the audio that prepared sets store and models are trained on: mono, 16-bit, `SAMPLE_RATE`."""

SAMPLE_RATE = 16_000  # Hz
