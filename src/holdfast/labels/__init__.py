"""Methods about the answer key: which labels are wrong, and learning when they are."""
