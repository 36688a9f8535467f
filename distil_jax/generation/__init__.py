"""Sampling: the pure sampler and the engine that drives it."""
