"""What every rank stands on: the process group, seeds, masked secrets, the clock."""
