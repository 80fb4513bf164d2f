"""All that differs between model architectures."""
