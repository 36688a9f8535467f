"""Lets several processes start, train, stop and fail together."""
