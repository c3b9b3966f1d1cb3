"""``pplguard review``."""
