"""Training runs that others published, as plans that a user would write, and what is predicted of them."""
