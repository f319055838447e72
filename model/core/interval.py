"""How wide intervals are: central ones of a normal distribution, of logarithms where a figure is positive."""

from __future__ import annotations

INTERVAL = 0.9  # probability that an interval holds the true value: a choice, 5 % are left on either side
Z = 1.6448536269514722  # standard normal quantile at 95 %: standard errors that such an interval reaches to either side
