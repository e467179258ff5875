"""What a model has by heart: stretches of its samples that stand, token for token or nearly, in its training data."""
