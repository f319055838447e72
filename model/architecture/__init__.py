"""What a model is: its shape, read from a config.json."""
