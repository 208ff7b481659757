"""Parsers of corpora and manifest formats: one module per source of speech or text."""
