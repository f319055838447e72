"""What is stored: profiles, calibrations, the names of their parameters."""
