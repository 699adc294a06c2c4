"""What a machine offers to a soak, and what of it must not be touched: judged, and said with what to do."""
