"""Sampling with the trainer's own transformers model."""
