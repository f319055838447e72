"""What times one operator: shapes, operands, timers, loads."""
