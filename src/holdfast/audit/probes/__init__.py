"""The probes, one question a module."""
