"""Calibrations from tables of kernel readings: products, fused layers of experts, attention, forward passes alone."""
