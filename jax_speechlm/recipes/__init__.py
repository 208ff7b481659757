"""The Experiment record, and the named experiments."""
