"""Formats in which people have speech: one parser per manifest format, data folder and corpus."""
