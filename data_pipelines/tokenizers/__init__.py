"""Tokenizers: characters, SentencePiece, phones, speech units, and Hugging Face's."""
