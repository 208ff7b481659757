"""Decoding and alignment of CTC posteriors."""
