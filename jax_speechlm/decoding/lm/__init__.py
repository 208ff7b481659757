"""Generation from language models, n-gram models, and their fusion with a beam search."""
