"""Untrusted images and archives."""
