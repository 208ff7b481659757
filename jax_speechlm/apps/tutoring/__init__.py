"""Tutoring: reading aloud, scores of short answers, practice of what was missed."""
