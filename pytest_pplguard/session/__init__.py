"""A pytest run: what to measure, how to judge, what the controller does."""
