"""The journal: what happened in a run, line by line, on disk."""
