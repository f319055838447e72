"""Predicted against measured, as tables, JSON and one page."""
