"""How long a collective takes over the links of a cluster."""
