"""Plain PyTorch: the model, its operators, and one file for each kind of parallelism."""
