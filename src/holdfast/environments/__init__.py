"""Methods for shifts of the world around the model."""
