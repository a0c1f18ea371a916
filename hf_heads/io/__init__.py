"""What is read and written: data and checkpoints."""
