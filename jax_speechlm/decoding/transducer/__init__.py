"""Decoding of transducers, RNN-T and TDT."""
