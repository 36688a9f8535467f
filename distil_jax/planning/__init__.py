"""Plans memory, FLOPs and traffic of a run on hardware that is not here."""
