"""A zoo of broken and of harmless checkpoints, to see what the gates catch."""
