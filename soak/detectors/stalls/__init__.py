"""Stalls, late wake-ups and early truncates: judged, probed, and answered."""
