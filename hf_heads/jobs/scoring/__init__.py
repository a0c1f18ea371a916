"""Which heads matter."""
