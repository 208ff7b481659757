"""Errors, paths, lines of files and keyed permutations, which every other package here uses."""
