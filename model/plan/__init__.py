"""What a user asks: the plan, alone and as a batch of arrays."""
