"""DeepSpeed: its Mixture-of-Experts layer and its engine, in the torch backend's model."""
