"""What a run and an evaluation leave on disk, written and read."""
