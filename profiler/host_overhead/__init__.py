"""How long the host needs to queue a block, alone and in parallel plans."""
