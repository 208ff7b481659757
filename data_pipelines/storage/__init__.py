"""Prepared sets on disk: indexes, records, and labels stored beside an index."""
