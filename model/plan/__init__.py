"""What a user asks: the plan, alone and as a batch of arrays, its mesh of degrees, and the rules that make it legal."""
