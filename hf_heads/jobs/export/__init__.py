"""Ways out of this package: checkpoints that load where it is not installed."""
