"""What a run is told as, once it has ended."""
