"""Shows runs as a page to look at: curves, verdicts, time and rollouts."""
