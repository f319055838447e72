"""Training under Hugging Face's Trainer on one GPU, predicted before any of it ran, against what was measured.

    python bench/hugging_face.py [--json] [--plans]
    python bench/hugging_face.py --predict      write the predicted.json of each set that has none

`bench/jobs/transformers_job.py` runs a plan of a set in bench/plans and writes its readings, which bench/measured
keeps. Figures are of bench/plans/transformers; beside them

    unseen_...       of transformers-unseen, other models and shapes, chosen when predictions had been mended by the
                     first
    lora_...         of transformers-lora, nine plans with adapters, predicted from their code
    short_...        of transformers-short, seven plans whose micro-batches are so short that the host bounds them

Of the first set kernels were traced in four runs, of which one with three micro-batches in place of one. What the host
does is by the runs of bench/plans/transformers-host, after those of adapters had shown that it was missing.
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
