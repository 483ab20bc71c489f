"""The compressed cache of a conversation: reading prompts, selecting rows, statistics."""
