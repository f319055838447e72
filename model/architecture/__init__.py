"""What a model is: its shape, read from a config.json, its parameters and FLOPs."""
