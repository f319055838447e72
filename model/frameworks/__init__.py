"""What a training framework makes of a model on a GPU: one file each, and their registry."""
