"""Training under torchtitan 0.2.2 on one GPU or two, predicted before any of it ran, against what was measured.

    python bench/torchtitan.py [--json] [--plans]
    python bench/torchtitan.py --predict        write the predicted.json of each set that has none

`bench/jobs/torchtitan_job.py` runs a plan of bench/plans/torchtitan, or of torchtitan-unseen, and writes its
readings, which bench/measured keeps. Means over plans of |predicted / measured - 1| (`_mape`) and of the ratio less 1
(`_signed`), nothing of them fitted:

    step_time_mape, energy_mape      of a step
    reserved_mape                    of the peak that torch's allocator reserved
    inside                           share of measured times in the 90 % interval
    plans                            that ran
    before_...                       the same of what was predicted before the runs
    unseen_...                       the same of other models and shapes, chosen when the predictions had been mended by
                                     the first set
    two_gpus_...                     the same of seven plans for two GPUs, chosen then
    cp_...                           the same of two plans of context parallelism over two GPUs, chosen later

Of the first set constants were traced in four runs, of that for two GPUs in two (`studies.public.own_runs`); two of
the first are sharded over a mesh of one GPU.
"""

from __future__ import annotations

from studies.trained_runs import main

_SETS = {"": "torchtitan", "unseen_": "torchtitan-unseen", "two_gpus_": "torchtitan-two-gpus", "cp_": "torchtitan-cp"}

if __name__ == "__main__":
    main(__doc__, _SETS)
