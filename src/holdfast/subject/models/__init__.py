"""How models come in, one form a module; each gives a `LoadedModel`."""
