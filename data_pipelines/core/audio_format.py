"""The format of the audio of prepared sets and models: mono, 16-bit, by default at this rate."""

DEFAULT_SAMPLE_RATE = 16_000  # Hz
