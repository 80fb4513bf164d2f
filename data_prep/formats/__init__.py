"""Readers of every layout that rows come in."""
