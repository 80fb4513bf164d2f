"""From rows to the prompts of a step."""
