"""Devices and their counters, a vendor a file."""
