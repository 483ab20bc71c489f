"""The command line: parse, call, print. Nothing that an embedding program would need is here."""
