"""What a training iteration is and what it costs. Pure numpy: no torch, no GPU, no files but its own presets."""
