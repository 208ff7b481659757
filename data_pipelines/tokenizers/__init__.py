"""Tokenizers: characters, SentencePiece, and those of Hugging Face."""
