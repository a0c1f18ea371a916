"""The attention that all methods share."""
