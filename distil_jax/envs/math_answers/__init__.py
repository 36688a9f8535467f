"""Reads and compares mathematical answers."""
