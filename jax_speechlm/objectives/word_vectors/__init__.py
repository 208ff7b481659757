"""Vectors of words from the words around them: skip-gram, CBOW and GloVe."""
