"""Leaked page references: measured, swept, and recycled."""
