"""What a conversion cost and gained, measured."""
