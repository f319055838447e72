"""Setting clocks and power limits, and giving them back whatever happens."""
