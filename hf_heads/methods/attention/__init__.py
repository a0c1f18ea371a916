"""The forward of every method: what a model needs to run, and nothing of what converts it."""
