"""Holds the files that `distil-jax init` writes."""
