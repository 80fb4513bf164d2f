"""Readers and comparisons of answers, one file per kind."""
