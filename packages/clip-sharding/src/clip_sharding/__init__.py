"""clip-sharding."""
