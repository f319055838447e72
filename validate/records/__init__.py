"""What a validation stores: what was asked and what ran."""
