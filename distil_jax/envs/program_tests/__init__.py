"""Reads the tests of programs, runs the comparison, and writes feedback."""
