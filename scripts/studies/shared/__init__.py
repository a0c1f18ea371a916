"""What studies share: options and results, models and data, the sentence task, timing."""
