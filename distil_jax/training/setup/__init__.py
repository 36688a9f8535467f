"""Builders that turn a config into the parts of a run."""
