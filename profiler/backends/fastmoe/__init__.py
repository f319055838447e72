"""FastMoE: its Mixture-of-Experts layer and data parallelism, in the torch backend's model."""
