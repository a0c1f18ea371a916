"""Data: read, encoded, made from nothing, batched."""
