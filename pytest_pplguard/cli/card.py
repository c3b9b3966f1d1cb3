"""``pplguard card``."""
