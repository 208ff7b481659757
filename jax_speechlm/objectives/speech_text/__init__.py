"""Objectives over speech and text."""
