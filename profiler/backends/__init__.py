"""Training frameworks that a run is measured under. `torch_model` and `torch_optimizer`: plain PyTorch, one GPU."""
