"""The ledger: counters and states of a run in shared memory."""
