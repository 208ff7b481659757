"""Where speech comes from: one module a source, each yielding clips."""
