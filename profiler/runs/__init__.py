"""`moemodel run`: training for a number of samples, run by run, each with a folder of what it did."""
