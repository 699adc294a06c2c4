"""The root of the lab's guest."""
