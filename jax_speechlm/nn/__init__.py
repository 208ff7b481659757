"""Layers, attention, LoRA and integer weights, as pure functions of their parameters."""
