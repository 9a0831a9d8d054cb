"""Train a small transformer with a backdoor and watch one attention head take it over."""

__version__ = "0.1.0"
