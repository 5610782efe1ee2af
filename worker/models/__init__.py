"""What the providers say of themselves: their lists of models, and whether they answer."""
