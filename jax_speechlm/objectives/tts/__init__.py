"""Objectives of speech synthesis."""
