"""Anybody's training loop, metered by step and phase."""
