"""Instruments on a device: true clock, energy, edges of a counter."""
