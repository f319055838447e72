"""Which plans to rerun, and whether the hardware at hand can run them."""
