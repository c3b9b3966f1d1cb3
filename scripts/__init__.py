"""Tools that make what examples, tests and baselines rest on."""
