"""DeepSpeed around a policy."""
