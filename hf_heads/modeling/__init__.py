"""Derived model types: how converted checkpoints reach transformers' Auto classes."""
