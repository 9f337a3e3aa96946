"""Results on disk: one parquet file per cell, one row per sample.

    RUN/cells/ID.parquet   the rows; the cell's definition and the versions as metadata
    RUN/suite.json         the resolved suite of the last run and the ids of its cells
    RUN/failed/ID.json     definition, error and traceback of a cell that failed
    RUN/report/            the report

Every file is written under a temporary name in its own folder, then renamed, so it is whole or not
there. A run folder may hold cells of other suites too; only the last run's are its results.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from robustdyn.errors import UserError
from robustdyn.folders import partial_path, put, write_json

_KEY = b"robustdyn"
_TEXTS = ("cell", "model", "family", "dataset", "split", "attack", "objective", "estimator", "norm")
_WHOLE = ("seed", "sample_id", "label", "clean_pred", "adv_pred", "clean_exit", "adv_exit")
_REAL = ("eps", "clean_macs", "adv_macs", "max_macs", "linf", "l2")
_TYPES: dict[str, pa.DataType] = {
    **dict.fromkeys(_TEXTS, pa.string()),
    **dict.fromkeys(_WHOLE, pa.int64()),
    **dict.fromkeys(_REAL, pa.float64()),
    **dict.fromkeys(("static", "valid"), pa.bool_()),
    **dict.fromkeys(("gate_names", "gate_kinds"), pa.list_(pa.string())),
    **dict.fromkeys(("clean_gates", "adv_gates"), pa.list_(pa.float64())),
    **dict.fromkeys(("image", "adv_image", "clean_map", "adv_map"), pa.list_(pa.float32())),
    **dict.fromkeys(("image_shape", "map_shape"), pa.list_(pa.int64())),
}
COLUMNS = tuple(_TYPES)
"""The columns that every file of rows has; a file may have more."""


def cell_path(run: Path, cell_id: str) -> Path:
    """Return where the rows of a cell are."""
    return run / "cells" / f"{cell_id}.parquet"


def failure_path(run: Path, cell_id: str) -> Path:
    """Return where the record of a failed cell is."""
    return run / "failed" / f"{cell_id}.json"


def write_cell(rows: pd.DataFrame, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a cell's rows and metadata, whole or not at all.

    Raises:
        ValueError: if a column is missing, or holds something else than COLUMNS says.
    """
    missing = [name for name in COLUMNS if name not in rows]
    if missing:
        raise ValueError(f"the rows lack the columns {', '.join(missing)}")
    extra = [name for name in rows.columns if name not in _TYPES]
    arrays = [pa.array(list(rows[name]), _TYPES[name]) for name in COLUMNS]
    arrays += [pa.array(rows[name]) for name in extra]
    table = pa.table(arrays, names=[*COLUMNS, *extra])
    table = table.replace_schema_metadata({_KEY: json.dumps(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    pq.write_table(table, partial, compression="zstd", write_page_checksum=True)
    put(partial, path)


def is_run_folder(folder: Path) -> bool:
    """True if a run wrote `folder`."""
    return (folder / "suite.json").is_file() or any((folder / "cells").glob("*.parquet"))


def load_results(run: str | os.PathLike[str]) -> pd.DataFrame:
    """Return the rows of a run, one per sample and attack, in the order of its suite.

    Args:
        run: the run folder.

    Raises:
        UserError: if there are no results in it, or one of its files is damaged.
    """
    tables = [_read(path) for path in _files(Path(run))]
    return pd.concat([_frame(table) for table in tables], ignore_index=True)


def load_metadata(run: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the metadata of each cell of a run: its definition, id, versions, seconds and date.

    Raises:
        UserError: if there are no results, or one of its files is damaged.
    """
    return [_metadata(path, _schema(path)) for path in _files(Path(run))]


def save_plan(suite: Mapping[str, Any], cell_ids: Sequence[str], run: Path) -> None:
    """Write suite.json: from now on these cells are the run's results."""
    write_json({"suite": suite, "cells": cell_ids}, run / "suite.json")


def load_plan(run: Path) -> dict[str, Any]:
    """Return the last run's {"suite": ..., "cells": [ids]}; {} if the folder has no suite.json.

    Raises:
        UserError: if suite.json is damaged.
    """
    path = run / "suite.json"
    if not path.is_file():
        return {}
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        return {"suite": dict(plan["suite"]), "cells": [str(cell) for cell in plan["cells"]]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}' is damaged: {error}.", "Run the suite again.") from error


def _files(run: Path) -> list[Path]:
    if not run.is_dir():
        raise UserError(f"There is no run folder '{run}'.", "Run `robustdyn run quickstart` first.")
    cells = load_plan(run).get("cells")
    if cells is None:
        paths = sorted((run / "cells").glob("*.parquet"))
    else:
        paths = [path for path in (cell_path(run, cell) for cell in cells) if path.is_file()]
    if not paths:
        raise UserError(
            f"There are no results in '{run}'.",
            "Give the folder of a run, for example runs/quickstart, and let a cell finish.",
        )
    return paths


def _read(path: Path) -> pa.Table:
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path) from error
    _metadata(path, table.schema)
    if not set(COLUMNS) <= set(table.column_names):
        raise _damaged(path)
    return table


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path) from error


def _metadata(path: Path, schema: pa.Schema) -> dict[str, Any]:
    try:
        return json.loads(schema.metadata[_KEY])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(
        f"The results file '{path}' is damaged.",
        "Delete it and run the suite again: only what is missing is computed.",
    )


def _frame(table: pa.Table) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_list(column.type):
            values = np.empty(len(column), dtype=object)  # lists and None, not arrays
            values[:] = column.to_pylist()
            columns[name] = pd.Series(values, dtype=object)
        else:
            columns[name] = column.to_pandas()
    return pd.DataFrame(columns)
