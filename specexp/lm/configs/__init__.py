"""What a config.json alone says of a model: values that are invalid, what it cannot do. Needs no torch."""
