"""The ways to pin pages."""
