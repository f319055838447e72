"""Everything that touches hardware or a training framework. Needs torch. Four wings:

hardware   `devices`, `platforms` (which tells vendors apart), `simulated`, `clocks`, `instruments`
profile    `run`, `sections`, `microbench`, `host_overhead`, `collectives`, `store`
training   `training`, `backends`, `jobs`
metering   `meter`, `emissions`
"""
