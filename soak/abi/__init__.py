"""Kernel interfaces: numbers, structures and calls. Nothing here knows what the project is for."""
