"""A batch of plans becomes step time, energy, clock and memory."""
