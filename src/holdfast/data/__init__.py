"""Methods for the training set: duplicates, intrinsic dimension."""
