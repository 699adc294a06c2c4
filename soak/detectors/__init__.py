"""Detectors: each reads the ledger or the kernel, judges, and reports findings."""
