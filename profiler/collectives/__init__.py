"""Communication between GPUs, measured: collectives by size and group, the power they draw, overlap with computation."""
