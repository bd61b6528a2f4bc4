"""Methods for the analyst: conformal inference, intervals."""
