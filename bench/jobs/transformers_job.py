"""One plan trained by Hugging Face's Trainer on a GPU: time, energy, clock and memory of a step, as a JSON object.

    python bench/jobs/transformers_job.py PLAN.yaml RESULT.json

Needs transformers, accelerate, pynvml, and peft for a plan with adapters, and nothing of this project's rooms; the
plan's architecture is a file beside it, or one of `model/presets/architectures`. Weights and tokens are random.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from gpu_meter import MEASURED_S, WARM_UP_S, GpuMeter

_LEAST_STEPS = 6
_SAMPLES = 1024  # sequences, which a run passes over and over
_TARGETS = {
    "qkv": ["q_proj", "k_proj", "v_proj"],
    "proj": ["o_proj"],
    "fc1": ["gate_proj", "up_proj"],
    "fc2": ["down_proj"],
}
_PRESETS = Path(__file__).parents[2] / "model" / "presets" / "architectures"


class Sequences(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens, each its own label."""

    def __init__(self, vocab: int, length: int) -> None:
        self.tokens = torch.randint(vocab, (_SAMPLES, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return _SAMPLES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Phases:
    """Seconds that the host spends in forward and backward passes of a Trainer, and behind them, since `begin`."""

    def __init__(self) -> None:
        self.spent_s = dict.fromkeys(("forward", "backward", "step"), 0.0)
        self._passed_s = 0.0  # when the last backward pass was over

    def watch(self, trainer: Trainer) -> None:
        """Of this Trainer."""
        trainer.compute_loss = self._timed("forward", trainer.compute_loss)
        trainer.accelerator.backward = self._timed("backward", trainer.accelerator.backward)

    def begin(self) -> None:
        """Forget what was."""
        self.spent_s = dict.fromkeys(self.spent_s, 0.0)

    def end_step(self) -> None:
        """A step is over."""
        self.spent_s["step"] += time.perf_counter() - self._passed_s

    def _timed(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any, **named: Any) -> Any:
            begin_s = time.perf_counter()
            found = call(*values, **named)
            self._passed_s = time.perf_counter()
            self.spent_s[phase] += self._passed_s - begin_s
            return found

        return timed


class Measurement(TrainerCallback):  # type: ignore[misc]  # where transformers is not installed
    """Ends a training when it has measured enough steps; `found` is what it saw."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.phases = Phases()
        self._sections = self._run()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Before the first step."""
        next(self._sections)

    def on_step_end(self, _args: Any, _state: Any, control: Any, **_: Any) -> None:
        """After each."""
        self.phases.end_step()
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
        yield from self._steps(math.ceil(WARM_UP_S / step_s))
        count = max(_LEAST_STEPS, math.ceil(MEASURED_S / step_s))
        self.phases.begin()
        with GpuMeter(0) as meter:
            begin_s = time.perf_counter()
            yield from self._steps(count)
            elapsed_s = time.perf_counter() - begin_s
        self.found = meter.found | {
            "steps": count,
            "step_time_s": elapsed_s / count,
            "energy_J": meter.found["energy_J"] / count,
            "allocated_B": torch.cuda.max_memory_allocated(),
            "reserved_B": torch.cuda.max_memory_reserved(),
            **{f"host_{phase}_s": spent_s / count for phase, spent_s in self.phases.spent_s.items()},
        }


def adapted(model: Any, lora: dict[str, Any]) -> Any:
    """A model with PEFT's adapters."""
    import peft

    targets = [name for target in lora.get("targets", _TARGETS) for name in _TARGETS[target]]
    rank = lora["rank"]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=lora.get("dropout", 0.0),
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


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
    model = model if plan.get("lora") is None else adapted(model, plan["lora"])
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
    transformers.set_seed(0)
    measurement = Measurement()
    trainer = trainer_of(yaml.safe_load(plan_file.read_text(encoding="utf-8")), plan_file.parent, measurement)
    measurement.phases.watch(trainer)
    trainer.train()
    parameters = sum(part.numel() for part in trainer.model.parameters())
    software = {name.__name__: name.__version__ for name in (torch, transformers)}
    result_file.write_text(json.dumps(measurement.found | {"parameters": parameters} | software, indent=1) + "\n")


if __name__ == "__main__":
    main()
