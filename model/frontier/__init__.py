"""The clocks of a pipeline's operations that need least energy for a step of a given length."""
