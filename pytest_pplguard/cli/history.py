"""``pplguard history``."""
