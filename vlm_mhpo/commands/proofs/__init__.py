"""Proofs with a tiny model on a user's configuration: exact resume, and gradients that batching does not change."""
