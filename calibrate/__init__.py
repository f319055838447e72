"""From a profile to a calibration: fits, their errors on what was held out, and the calibrations that ship."""
