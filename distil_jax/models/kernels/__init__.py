"""Attention kernels for each platform."""
