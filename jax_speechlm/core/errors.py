"""Errors of jax_speechlm that a user can correct."""

from data_pipelines.core.errors import UserError


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message names the folder and the remedy."""
