"""Studies of others, measured again on the GPU at hand."""
