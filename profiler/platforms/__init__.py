"""The one place that tells vendors apart."""
