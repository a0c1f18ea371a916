"""Mathematics on tensors, the one error, and the words: no transformers."""
