"""What a model file says of itself: its shape, its kind, its fingerprint."""
