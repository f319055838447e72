"""What profile and validate run is what they ran before routers had rules: losses of steps, as printed by that version.

The figures are of commit 4a6b488, float32, seed 0, on a CPU; the machine that printed them gives the same bits.
"""

from __future__ import annotations

import pytest
import torch

from moemodel.profiler.backends.torch_native.trainer import Trainer
from tests.profiler.backends.torch_native.ranks_parity import run_of

_LOSSES = {
    "llama": (4.149136901, 4.114716530, 4.122708082),
    "opt": (4.126179457, 4.127896428, 4.125416517),
    "olmoe": (4.149688244, 4.115095019, 4.123062134),
    "shared": (4.149643779, 4.114829898, 4.123179674),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_a_run_that_asks_nothing_of_routers_has_the_losses_that_it_had(name: str) -> None:
    trainer = Trainer(run_of({"architecture": name, "parallel": {}}), torch.device("cpu"))
    found = []
    for _ in _LOSSES[name]:
        trainer.step()
        found.append(trainer.loss())
    assert found == pytest.approx(_LOSSES[name], rel=2e-7)  # float32 rounds by 6e-8; other CPUs add in another order
