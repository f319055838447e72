"""What the scripts of `bench/` share; nothing that ships imports it."""
