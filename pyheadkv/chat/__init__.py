"""Talking to a model whose cache is compressed."""
