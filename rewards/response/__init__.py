"""From a response to the answer that it declares."""
