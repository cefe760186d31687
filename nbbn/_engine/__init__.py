"""One call, from checked arrays to a running kernel."""
