"""Killable processes, and the limits of what they are given."""
