"""Self-supervised objectives for speech encoders."""
