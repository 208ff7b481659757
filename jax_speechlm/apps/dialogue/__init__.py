"""Spoken or typed dialogues that collect values over turns, declared in one YAML file."""
