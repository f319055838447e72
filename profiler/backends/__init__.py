"""Training frameworks that a run is measured under. `run`: the narrow interface to them; `torch_*`: plain PyTorch."""
