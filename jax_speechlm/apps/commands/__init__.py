"""Spoken commands: grammars of intents, and their recognition in speech."""
