"""Training frameworks that a run is measured under. `base`: the narrow interface to them; `torch_native`: plain
PyTorch."""
