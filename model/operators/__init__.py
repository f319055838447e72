"""What a training step is made of: operators, their FLOPs and bytes."""
