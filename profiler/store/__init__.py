"""The profile as it is written: tables and manifest."""
