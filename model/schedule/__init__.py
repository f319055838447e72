"""Pipeline schedules: which layers a stage holds, and how long a step of all stages takes."""
