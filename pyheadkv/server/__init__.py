"""A model behind OpenAI's HTTP API. Needs the extra `serve`."""
