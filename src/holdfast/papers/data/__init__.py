"""Papers about the training set."""
