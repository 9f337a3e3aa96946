"""Results on disk: what goes in comes out, whole or not at all."""

import json
import os

import pandas as pd
import pytest
from synthetic_rows import KINDS, cell_rows

from robustdyn.errors import UserError
from robustdyn.results import (
    COLUMNS,
    cell_path,
    load_metadata,
    load_plan,
    load_results,
    save_plan,
    write_cell,
    write_json,
)


def rows(model="dynconv", n=10, **changes):
    return cell_rows(model, KINDS[model], n=n).assign(**changes)


def save(run, name, table, **metadata):
    write_cell(table.assign(cell=name), cell_path(run, name), {"id": name} | metadata)


def test_rows_come_back_as_they_were(tmp_path):
    original = rows().assign(cell="a", more=1.5)
    save(tmp_path, "a", original)
    loaded = load_results(tmp_path)
    assert list(loaded) == [*COLUMNS, *(name for name in original if name not in COLUMNS)]
    assert "more" in loaded
    for name in COLUMNS:
        assert loaded[name].tolist() == original[name].tolist(), name
    assert loaded["image"][9] is None  # only the first 8 samples have one
    assert isinstance(loaded["gate_names"][0], list)


def test_cells_of_every_kind_go_together(tmp_path):
    for model in KINDS:
        save(tmp_path, model, rows(model))
    loaded = load_results(tmp_path)
    assert len(loaded) == 10 * len(KINDS)
    assert loaded["static"].dtype == bool
    assert loaded["sample_id"].dtype == "int64"


def test_metadata_comes_back(tmp_path):
    save(tmp_path, "a", rows(), definition={"eps": 8 / 255}, seconds=1.5)
    assert load_metadata(tmp_path) == [{"id": "a", "definition": {"eps": 8 / 255}, "seconds": 1.5}]


def test_only_the_plan_is_loaded_in_its_order(tmp_path):
    for name in "abc":
        save(tmp_path, name, rows(seed=ord(name)))
    save_plan({"name": "mine"}, ["c", "missing", "a"], tmp_path)
    assert load_results(tmp_path)["cell"].unique().tolist() == ["c", "a"]
    assert [m["id"] for m in load_metadata(tmp_path)] == ["c", "a"]
    assert load_plan(tmp_path)["suite"] == {"name": "mine"}


def test_missing_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="adv_macs"):
        save(tmp_path, "a", rows().drop(columns="adv_macs"))
    assert not list(tmp_path.glob("cells/*"))


def test_no_file_appears_before_it_is_whole(tmp_path, monkeypatch):
    def broken(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, "a", rows())
    assert [path.suffix for path in tmp_path.glob("cells/*")] == [".partial"]
    with pytest.raises(UserError):
        load_results(tmp_path)


def test_partial_files_are_ignored(tmp_path):
    save(tmp_path, "a", rows())
    (tmp_path / "cells" / "b.parquet.123.partial").write_bytes(b"half a file")
    assert load_results(tmp_path)["cell"].unique().tolist() == ["a"]


def test_nothing_there_is_an_error_of_the_user(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError):
            load_results(folder)


def damage_end(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_middle(path):
    content = path.read_bytes()
    path.write_bytes(content[:40] + bytes(200) + content[240:])


def replace_by_text(path):
    path.write_text("no parquet")


def replace_by_foreign(path):
    pd.DataFrame({"a": [1]}).to_parquet(path)


@pytest.mark.parametrize("damage", [damage_end, damage_middle, replace_by_text, replace_by_foreign])
def test_a_damaged_file_is_named(tmp_path, damage):
    save(tmp_path, "a", rows(n=200))
    damage(cell_path(tmp_path, "a"))
    with pytest.raises(UserError, match=r"a\.parquet.*damaged"):
        load_results(tmp_path)


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_plan(tmp_path)


def test_json_is_written_whole(tmp_path):
    write_json({"a": [1, 2]}, tmp_path / "deep" / "file.json")
    assert json.loads((tmp_path / "deep" / "file.json").read_text()) == {"a": [1, 2]}
    assert len(list((tmp_path / "deep").iterdir())) == 1
