"""``pplguard check``."""
