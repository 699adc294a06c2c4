"""One soak, from its assembly to its last line in the journal."""
