"""clip-train."""
