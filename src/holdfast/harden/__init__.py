"""Remedies: a subject in, a hardened subject out."""
