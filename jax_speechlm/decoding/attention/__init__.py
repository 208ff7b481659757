"""Search of attention decoders."""
