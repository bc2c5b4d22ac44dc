"""clip-data."""
