"""Tokenizers: characters, SentencePiece, and Hugging Face's."""
