"""Training under torchtitan 0.2.2 on one GPU or two, predicted before any of it ran, against what was measured.

    python bench/torchtitan.py [--json] [--plans]
    python bench/torchtitan.py --predict        write the predicted.json of each set that has none

`bench/jobs/torchtitan_job.py` runs a plan of a set in bench/plans and writes its readings, which bench/measured keeps.
Figures are of bench/plans/torchtitan; beside them

    unseen_...       of torchtitan-unseen, other models and shapes, chosen when predictions had been mended by the first
    two_gpus_...     of torchtitan-two-gpus, seven plans chosen then
    cp_...           of torchtitan-cp, two of context parallelism over two GPUs, chosen later

Of the first set constants were traced in four runs, of that for two GPUs in two (`studies.public.own_runs`); two of
the first are sharded over a mesh of one GPU.
"""

from __future__ import annotations

from studies.trained_runs import main

_SETS = {"": "torchtitan", "unseen_": "torchtitan-unseen", "two_gpus_": "torchtitan-two-gpus", "cp_": "torchtitan-cp"}

if __name__ == "__main__":
    main(__doc__, _SETS)
