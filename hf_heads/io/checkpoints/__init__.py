"""Checkpoints on disk: found, read, written, described, published."""
