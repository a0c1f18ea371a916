"""The architectures: where each keeps its attention."""
