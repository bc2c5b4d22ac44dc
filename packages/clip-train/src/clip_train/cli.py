"""Placeholder until the command line stands."""
