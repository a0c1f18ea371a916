"""Mathematics on tensors: torch alone, no transformers."""
