"""Pipeline schedules, one file each: what a stage holds and in which order it works, and how long a step takes."""
