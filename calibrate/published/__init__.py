"""Calibrations fitted to what others have published."""
