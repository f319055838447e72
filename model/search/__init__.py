"""Which plan is best: every legal combination, predicted, and the front of the best."""
