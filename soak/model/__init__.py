"""What a kernel owes: the words, the expectations, the known issues."""
