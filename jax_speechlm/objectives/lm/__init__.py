"""Objectives of language models over text and over speech units."""
