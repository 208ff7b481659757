"""Configuration base, batches, vocabularies and exit statuses, which every other package here uses."""
