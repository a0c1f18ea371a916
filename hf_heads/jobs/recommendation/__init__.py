"""What to do with a model: a handful of conversions, measured on it and on this machine."""
