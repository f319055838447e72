"""What every other folder may use: errors, documents, names that are guessed, types of arrays, files written whole."""
