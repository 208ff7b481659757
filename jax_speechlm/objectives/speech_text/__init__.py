"""Objectives that join speech and text."""
