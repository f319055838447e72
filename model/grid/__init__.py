"""A whole run against an hourly series of carbon intensity or price: when to run, to pause, or to slow the clocks."""
