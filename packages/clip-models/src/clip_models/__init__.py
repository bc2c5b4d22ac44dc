"""clip-models."""
