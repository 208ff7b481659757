"""Prepared sets on disk: indexes, records, and labels stored next to an index."""
