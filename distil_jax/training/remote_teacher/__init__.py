"""Asks a teacher behind an HTTP server, between sampling and the update."""
