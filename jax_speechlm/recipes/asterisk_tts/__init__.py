"""Speech synthesis on the one voice of asterisk-en."""
