"""Kernels that the lab boots: found, fetched, or built."""
