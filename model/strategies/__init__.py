"""Ways to choose the clocks of a training step, by their names, on the same job."""
