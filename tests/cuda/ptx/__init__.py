"""PTX to C++: `python -m ptx` (see __main__.py)."""
