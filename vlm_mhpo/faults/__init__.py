"""What stops, breaks or spoils a run: signals, ranks that die, bad steps; and what keeps the evidence."""
