"""A model file by its own words: its shape, its kind, its fingerprint."""
