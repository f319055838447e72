"""From a profile to a calibration, one part a file."""
