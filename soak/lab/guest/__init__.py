"""The lab's guest: its first process, and what it prepares for a soak."""
