"""Errors, paths, files, lines of files, keyed permutations and the audio format; imported by every other package."""
