"""From rows of any layout to our own tables."""
