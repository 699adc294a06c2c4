"""What workers do: seeded choices, the operations, and the loop that notes them in the ledger."""
