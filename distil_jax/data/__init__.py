"""The only room that touches disk and network."""
