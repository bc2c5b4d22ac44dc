"""clip-losses."""
