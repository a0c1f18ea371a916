"""The code that a checkpoint carries: one file, made of this package's own sources, that needs transformers alone."""
