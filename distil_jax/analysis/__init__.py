"""Compares training runs, and checks the method's claims on paper."""
