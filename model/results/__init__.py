"""What is printed or saved: the answer for one plan, its notes, validation reports."""
