"""Named rewards, a user's own, and their weighted sum."""
