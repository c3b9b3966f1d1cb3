"""Measurements of the numbers that this project promises."""
