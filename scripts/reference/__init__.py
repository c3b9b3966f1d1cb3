"""Writes the reference of the docs from the code: ``python -m scripts.reference``."""
