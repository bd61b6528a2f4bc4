"""What is audited: models and data, the doors they come in by, and what is checked there."""
