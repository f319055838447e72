"""Steps that wait for their sequences: against sequences drawn one by one, and in whole predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moemodel.calibration.store.catalogue import shipped
from moemodel.model.core.errors import InputError
from moemodel.model.plan.data_loading import DataLoadingSpec
from moemodel.model.plan.spec import Plan
from moemodel.model.results.outcome import Outcome, outcome


@pytest.mark.parametrize("dp", [1, 2, 4, 64])
def test_replicas_wait_for_the_slowest(dp: int) -> None:
    """Sequences drawn one by one, of 0.1 s and as unlike as gaps between random arrivals; by two processes."""
    drawn_s = np.random.default_rng(1).exponential(0.1, (2000, dp, 32)).sum(axis=2) / 2
    loading = DataLoadingSpec(sequence_s=0.1, workers=2, variation=1.0)
    expected = drawn_s.max(axis=1).mean()
    assert loading.step_s(np.array([32]), np.array([dp])) == pytest.approx([expected], rel=0.04)


def _outcome(**cluster: Any) -> Outcome:
    document = {"architecture": "opt-350m", "sequence_length": 2048, "global_batch": 64, "micro_batch": 4}
    document |= {"cluster": {"gpu": "h100-sxm-80gb", "gpus": 2} | cluster, "parallel": {"dp": 2}}
    return outcome(Plan.model_validate(document), shipped("h100-sxm-80gb"))


def test_a_step_is_as_long_as_its_sequences_take() -> None:
    """32 sequences of a replica by 4 processes: 8 times 0.5 s; the GPUs stand idle beside what they compute anyway."""
    alone, waiting = _outcome(), _outcome(data_loading={"sequence_s": 0.5, "workers": 4})
    assert waiting.step_time_s.value == pytest.approx(4.0)
    assert waiting.host_wait_s == pytest.approx(4.0 - alone.step_time_s.value + alone.host_wait_s, rel=0.01)
    assert waiting.power_W.value < alone.power_W.value
    assert "32 sequences (cluster.data_loading)" in " ".join(waiting.notes)


def test_what_is_read_in_time_costs_nothing() -> None:
    alone, beside = _outcome(), _outcome(data_loading={"sequence_s": 1e-4})
    assert beside.step_time_s == alone.step_time_s
    assert beside.gpu_energy_J == alone.gpu_energy_J


def test_a_sequence_takes_some_time() -> None:
    with pytest.raises(InputError, match=r"cluster\.data_loading\.sequence_s"):
        _outcome(data_loading={"sequence_s": 0.0})
