"""What stands between tags in a completion."""
