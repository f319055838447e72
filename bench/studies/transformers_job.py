"""One plan trained by Hugging Face's Trainer on a GPU: time, energy, clock and memory of a step, as a JSON object.

    python bench/studies/transformers_job.py PLAN.yaml RESULT.json

Needs transformers, accelerate and pynvml, and nothing of this project; the plan's architecture is a file beside it, or
one of `model/presets/architectures`. Weights and tokens are random.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pynvml
import torch
import transformers
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

_WARM_UP_S, _MEASURED_S = 5.0, 8.0
_LEAST_STEPS = 6
_SAMPLES = 1024  # sequences, which a run passes over and over
_PRESETS = Path(__file__).parents[2] / "model" / "presets" / "architectures"


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens, each its own label."""

    def __init__(self, vocab: int, length: int) -> None:
        self.tokens = torch.randint(vocab, (_SAMPLES, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Readings(threading.Thread):
    """Clock (MHz), power (W) and temperature (C) every 50 ms until `done`."""

    def __init__(self, gpu: Any) -> None:
        super().__init__(daemon=True)
        self.gpu, self.done, self.rows = gpu, threading.Event(), list[tuple[float, float, float]]()

    def run(self) -> None:
        while not self.done.wait(0.05):
            clock = pynvml.nvmlDeviceGetClockInfo(self.gpu, pynvml.NVML_CLOCK_SM)
            power = pynvml.nvmlDeviceGetPowerUsage(self.gpu) / 1e3
            self.rows.append((clock, power, pynvml.nvmlDeviceGetTemperature(self.gpu, pynvml.NVML_TEMPERATURE_GPU)))


class Measurement(TrainerCallback):  # type: ignore[misc]  # where transformers is not installed
    """Ends a training when it has measured enough steps; `found` is what it saw."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self._gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self._sections = self._run()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first step."""
        next(self._sections)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """After each."""
        try:
            next(self._sections)
        except StopIteration:
            control.should_training_stop = True

    def _steps(self, count: int) -> Iterator[None]:
        for _ in range(count):
            yield
        torch.cuda.synchronize()

    def _run(self) -> Iterator[None]:
        yield from self._steps(_LEAST_STEPS)
        begin_s = time.perf_counter()
        yield from self._steps(_LEAST_STEPS)
        step_s = (time.perf_counter() - begin_s) / _LEAST_STEPS
        yield from self._steps(math.ceil(_WARM_UP_S / step_s))
        count = max(_LEAST_STEPS, math.ceil(_MEASURED_S / step_s))
        readings = Readings(self._gpu)
        readings.start()
        energy_mJ, begin_s = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu), time.perf_counter()
        yield from self._steps(count)
        elapsed_s = time.perf_counter() - begin_s
        energy_J = (pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) - energy_mJ) / 1e3
        readings.done.set()
        readings.join()
        clocks, powers, temperatures = zip(*readings.rows, strict=True)
        self.found = {
            "steps": count,
            "step_time_s": elapsed_s / count,
            "energy_J": energy_J / count,
            "clock_MHz": fmean(clocks),
            "power_W": fmean(powers),
            "temperature_C": fmean(temperatures),
            "allocated_B": torch.cuda.max_memory_allocated(),
            "reserved_B": torch.cuda.max_memory_reserved(),
        }


def trainer_of(plan: dict[str, Any], folder: Path, callback: TrainerCallback) -> Trainer:
    """A Trainer for a plan; what is not said here stays as its defaults have it."""
    named = folder / plan["architecture"]
    file = named if named.is_file() else _PRESETS / f"{plan['architecture']}.json"
    said = json.loads(file.read_text(encoding="utf-8"))
    said |= {"num_hidden_layers": plan["layers"]} if "layers" in plan else {}
    model_type = said.pop("model_type")
    config = AutoConfig.for_model(model_type, **{key: value for key, value in said.items() if key[0] != "_"})
    config.use_cache = False
    dtype = torch.bfloat16 if plan["precision"] == "bf16" else torch.float32
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    micro_batch = plan.get("micro_batch", 1)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=plan["global_batch"] // micro_batch,
        gradient_checkpointing=plan.get("recompute") == "full",
        torch_compile=plan.get("compile", False),
        bf16=True,
        max_steps=1_000_000,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    data = Sequences(config.vocab_size, plan["sequence_length"])
    return Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback])


def main() -> None:
    """Command line."""
    plan_file, result_file = (Path(name) for name in sys.argv[1:])
    pynvml.nvmlInit()
    transformers.set_seed(0)
    measurement = Measurement()
    trainer = trainer_of(yaml.safe_load(plan_file.read_text(encoding="utf-8")), plan_file.parent, measurement)
    trainer.train()
    parameters = sum(part.numel() for part in trainer.model.parameters())
    software = {name.__name__: name.__version__ for name in (torch, transformers)}
    result_file.write_text(json.dumps(measurement.found | {"parameters": parameters} | software, indent=1) + "\n")


if __name__ == "__main__":
    main()
