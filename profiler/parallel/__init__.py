"""Plans run for real on several devices, through torch's own parallel APIs, each started by torchrun."""
