"""Calibrations of GPUs that nobody measured, taken over from the nearest one that was."""
