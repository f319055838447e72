"""Jobs of several processes: how they are started, followed and ended."""
