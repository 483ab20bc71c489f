"""Capsules: conversations in files, with all their rows, to be opened again without reading anything (README.md)."""
