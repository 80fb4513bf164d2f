"""From groups to rewards and advantages."""
