"""Training runs beside each other, at equal samples."""
