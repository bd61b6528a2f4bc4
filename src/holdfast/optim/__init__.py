"""First-order methods that torch does not have."""
