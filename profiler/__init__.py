"""Everything that touches hardware or a training framework: measures a device into a profile. Needs torch."""
