"""Factors common to all plans, refitted to validations."""
