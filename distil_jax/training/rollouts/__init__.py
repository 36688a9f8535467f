"""Rollouts of a training step, judged by the environment."""
