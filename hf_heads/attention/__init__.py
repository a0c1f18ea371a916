"""The attention that all methods share, and the architectures that it takes the place of."""
