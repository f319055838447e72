"""Predict, measure and optimise the time, energy, memory, carbon and cost of training language models."""

__version__ = "0.1.0"
