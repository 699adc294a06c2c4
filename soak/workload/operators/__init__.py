"""What a worker of each role does, an operation at a time."""
