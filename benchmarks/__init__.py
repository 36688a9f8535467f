"""Measurements: each module prints one table when it is run with -m."""
