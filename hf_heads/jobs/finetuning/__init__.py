"""Training a converted model, and converting one while it is trained."""
