"""Training under Hugging Face's Trainer on one GPU, predicted before any of it ran, against what was measured.

    python bench/hugging_face.py [--json] [--plans]
    python bench/hugging_face.py --predict      write the predicted.json of each set that has none

`bench/jobs/transformers_job.py` runs a plan of bench/plans/transformers and writes its readings, which
bench/measured keeps. Means over plans of |predicted / measured - 1| (`_mape`) and of the ratio less 1 (`_signed`),
nothing of them fitted:

    step_time_mape, energy_mape      of a step
    reserved_mape                    of the peak that torch's allocator reserved
    inside                           share of measured times in the 90 % interval
    plans                            that ran
    before_...                       the same of what was predicted before the runs
    unseen_...                       the same of other models and shapes, chosen when the predictions had been mended by
                                     the first set

Of the first set kernels were traced in four runs, of which one with three micro-batches in place of one.
"""

from __future__ import annotations

from studies.trained_runs import main

_SETS = {
    "": "transformers",
    "unseen_": "transformers-unseen",
    "lora_": "transformers-lora",
    "short_": "transformers-short",
}

if __name__ == "__main__":
    main(__doc__, _SETS)
