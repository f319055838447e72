"""What a model is made of, a block a file: parameters, operators, activations and communication of each."""
