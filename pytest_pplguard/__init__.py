"""Regression-test pruned language models: perplexity gates for pytest."""
