"""Configuration base class, batches, vocabularies and exit statuses, used by every other package here."""
