"""Serves a run's ledger to Prometheus: a process of its own, without privileges."""
