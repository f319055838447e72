"""Profiles that are read, calibrations that are written, and those that ship."""
