"""Gives readers of files what no writer would write."""
