"""Record golden predictions anew: python tests/golden/record.py

Only for a change that is meant to change predictions; its commit says what changed and by how much. `--redraw` draws
new plans too; without it the plans that are stored stay.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))

from plans import draw
from predictions import answered, group_of, predicted

from moemodel.model.architecture.hf_config import list_architectures

HERE = Path(__file__).parent
TABLE, ANSWERS = HERE / "predictions.parquet", HERE / "answers.json.gz"
_ANSWERS_EVERY = 11  # of the plans, those whose whole answer is kept: prime to the 20 of each framework


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--redraw", action="store_true", help="draw new plans")
    if parser.parse_args().redraw or not TABLE.exists():
        documents = [document for name in list_architectures() for document in draw(name)]
    else:
        documents = [json.loads(text) for text in pq.read_table(TABLE, columns=["plan"])["plan"].to_pylist()]
    _write_table(documents)
    kept = documents[::_ANSWERS_EVERY]
    lines = [json.dumps({"plan": document, "answer": answered(document)}) for document in kept]
    ANSWERS.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    print(f"{len(documents)} plans in {TABLE.name}, {len(lines)} answers in {ANSWERS.name}")


def _write_table(documents: list[dict[str, Any]]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for document in documents:
        groups.setdefault(group_of(document), []).append(document)
    rows: list[dict[str, Any]] = []
    for members in groups.values():
        columns = predicted(members)
        for index, document in enumerate(members):
            figures = {name: float(values[index]) for name, values in columns.items()}
            rows.append({"plan": json.dumps(document, sort_keys=True)} | figures)
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, TABLE, compression="zstd", compression_level=19)


if __name__ == "__main__":
    main()
