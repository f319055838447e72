"""Laws of one GPU: time, power, temperature and clock of an operator, and of a host that queues it."""
