"""What a model is made of, a block a file: parameters, FLOPs, operators, activations and collectives of each."""
