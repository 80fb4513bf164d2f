"""Where time and memory of the training step go: marks, FLOPs, rules of advice, table and image."""
