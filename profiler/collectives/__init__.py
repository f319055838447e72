"""What GPUs say to each other, measured: time, power and traffic of collectives, alone and beside computation."""
