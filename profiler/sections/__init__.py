"""The sections of a profile, one file each."""
