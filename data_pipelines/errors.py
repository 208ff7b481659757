"""Errors that a user can act on."""


class DataError(Exception):
    """A problem with the data or the machine; the message names the file and the remedy.

    The command line prints the message alone, without a traceback.
    """
