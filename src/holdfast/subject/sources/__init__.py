"""How data come in, one form a module; each gives `Examples`."""
