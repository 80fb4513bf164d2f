"""The training of a policy: the loop and its stages."""
