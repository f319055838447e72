"""What training sequences are made of: real text, or tokens of a stated distribution."""
