"""Files of arguments: scripts as shells read them, YAML and JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from moemodel.model.core.errors import InputError
from moemodel.model.plan.argument_files import arguments_of, read_arguments

SCRIPT = """\
#!/bin/bash
export OMP_NUM_THREADS=1
TP=8
GPUS=${GPUS:-64}
MODEL=(
    --num-layers 96   # deep
    --hidden-size 12288
    --tensor-model-parallel-size ${TP}
    --lr 6.0e-5 --swiglu
)
TRAINING="
    --global-batch-size ${GPUS}
    --recompute-modules core_attn moe
"
python pretrain_gpt.py ${MODEL[@]} \\
    ${TRAINING} --bf16
"""
AS_SAID = {
    "--num-layers": "96",
    "--hidden-size": "12288",
    "--tensor-model-parallel-size": "8",
    "--lr": "6.0e-5",
    "--swiglu": True,
    "--global-batch-size": "64",
    "--recompute-modules": "core_attn moe",
    "--bf16": True,
}


def test_a_script_says_what_a_shell_would_pass_on(tmp_path: Path) -> None:
    path = tmp_path / "launch.sh"
    path.write_text(SCRIPT, encoding="utf-8")
    found = read_arguments(path)
    assert found == AS_SAID
    shell = SCRIPT.replace("python pretrain_gpt.py", "printf '%s\\n'")
    words = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout.split()
    assert shlex.join(words) == " ".join(
        name if value is True else f"{name} {value}" for name, value in AS_SAID.items()
    )


def test_documents_say_the_same(tmp_path: Path) -> None:
    arguments = {"--num-layers": 12, "--bf16": True}
    (tmp_path / "a.json").write_text(json.dumps(arguments), encoding="utf-8")
    (tmp_path / "b.yaml").write_text(
        "ENV_VARS: {A: 1}\nMODEL_ARGS:\n  --num-layers: 12\n  --bf16: true\n", encoding="utf-8"
    )
    assert read_arguments(tmp_path / "a.json") == read_arguments(tmp_path / "b.yaml") == arguments


def test_joined_values_and_later_ones_count() -> None:
    assert arguments_of("--a=1 --b 'x y' --a 2") == {"--a": "2", "--b": "x y"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--num-layers $LAYERS", "--num-layers: found '$LAYERS', and nothing that sets LAYERS; allowed: a value"),
        ("--a 'x", "found a text that no shell would take"),
        ("echo nothing", "found no argument"),
    ],
)
def test_errors_name_place_found_and_allowed(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "launch.sh"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read_arguments(path)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)
