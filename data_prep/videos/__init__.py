"""Untrusted videos."""
