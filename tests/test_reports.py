"""Reports: every figure on every kind of rows, the flags, the tables and the page."""

import re
from functools import cache, partial
from html.parser import HTMLParser
from io import StringIO

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pandas.testing import assert_frame_equal
from synthetic_rows import KINDS, run_rows, transfer_rows

from robustdyn import UserError, metrics, reports
from robustdyn.labels import DASH, TIMES, aim_of, attack_label, threat_label
from robustdyn.reports import registry

ONE = (("pgd", "compute"),)
THREE = (("noise", ""), ("pgd", "cross_entropy"), ("pgd", "compute"))
TWO_KINDS = {name: KINDS[name] for name in ("sdn_resnet", "skip_rnn")}
CASES = {
    **{name: partial(run_rows, {name: KINDS[name]}, n=12) for name in KINDS},
    "one_attack": partial(run_rows, TWO_KINDS, ONE, eps=(8 / 255,), n=12),
    "clean_only": partial(run_rows, attacks=(), n=12),
    "transfer": partial(transfer_rows, n=12),
    "one_sample": partial(run_rows, attacks=THREE, n=1),
    "two_seeds": partial(run_rows, TWO_KINDS, ONE, n=12, seeds=(0, 1)),
    "odd_names": partial(run_rows, {"$x$_^<b>": KINDS["dynconv"]}, ONE, n=12),
    "two_norms": lambda: pd.concat(
        [run_rows(attacks=THREE, n=12), run_rows(attacks=THREE, n=12).assign(norm="l2", eps=0.5)]
    ),
}
FIGURES = [spec.name for spec in reports.list_figures()]


@cache
def rows_of(case):
    return CASES[case]()


@pytest.fixture(scope="module")
def rows():
    return run_rows(attacks=THREE, n=12)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_draws_what_it_applies_to(name):
    spec = reports.get_figure(name)
    applicable = [case for case in CASES if spec.applies(rows_of(case))]
    assert applicable
    assert "clean_only" not in applicable
    for case in applicable:
        rows = rows_of(case)
        before = rows.copy(), dict(mpl.rcParams)
        figure = spec.draw(rows)
        assert isinstance(figure, Figure)
        assert "n = " in figure.caption
        assert "seed" in figure.caption
        assert figure.cells
        assert set(figure.cells) <= set(rows["cell"])
        assert any(ax.get_xlabel() or ax.get_ylabel() for ax in figure.axes), case
        figure.draw_without_rendering()
        assert_frame_equal(rows, before[0])
        assert dict(mpl.rcParams) == before[1]
        assert not plt.get_fignums()


def test_rows_read_back_from_parquet_draw_the_same(rows, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    again = pd.read_parquet(tmp_path / "rows.parquet")
    for spec in reports.list_figures():
        if spec.applies(rows):
            assert spec.draw(again).caption == spec.draw(rows).caption


def test_a_figure_is_registered_once_and_by_its_name(monkeypatch):
    monkeypatch.setattr(registry, "_FIGURES", dict(registry._FIGURES))

    @reports.register_figure
    def my_figure(rows):
        """What it shows.

        More about it.
        """
        return Figure()

    assert reports.get_figure("my_figure").title == "What it shows"
    with pytest.raises(ValueError, match="twice"):
        reports.register_figure(my_figure)
    with pytest.raises(UserError, match="caption"):
        reports.get_figure("my_figure").draw(run_rows(n=2))
    with pytest.raises(UserError, match="Did you mean 'headroom_bars'"):
        reports.get_figure("headrom_bars")


def test_labels():
    assert attack_label("pgd", "cross_entropy") == "pgd cross entropy"
    assert attack_label("pgd", "compute", "sigmoid") == "pgd compute (sigmoid)"
    assert attack_label("pgd from skip_rnn", "compute", "sigmoid") == (
        "pgd compute (sigmoid) from skip_rnn"
    )
    assert threat_label("linf", 8 / 255) == "L∞ 8/255"
    assert threat_label("l2", 0.5) == "L2 0.5"
    assert aim_of("pgd", "cross_entropy") == aim_of("torchattacks:PGD", "") == "accuracy"
    assert aim_of("pgd", "compute") == aim_of("timing", "") == "compute"
    assert aim_of("pgd", "fast_and_wrong") == "accuracy"  # it lowers the compute
    assert aim_of("autoslow from skip_rnn", "") == "compute"
    assert aim_of("noise", "") == aim_of("corruption", "") == "noise"


DIAGNOSES = [
    *("clean_bit_operations", "adv_bit_operations", "max_bit_operations"),
    *("params", "fitted_on", "clean_expected_macs", "adv_expected_macs", "gate_gradient"),
    *("loss_gradient", "repeatable", "still_rising", "uses_gradient"),
]


def test_rows_of_older_files_make_a_report(tmp_path):
    old = run_rows(TWO_KINDS, THREE, n=12).drop(columns=DIAGNOSES)
    mixed = pd.concat([old, run_rows(TWO_KINDS, ONE, n=12, eps=(4 / 255,))], ignore_index=True)
    for rows in (old, mixed):
        assert reports.write_report(rows, tmp_path, title="old", about={}).is_file()


def test_runs_that_differ_in_a_parameter_are_lines_of_their_own(tmp_path):
    short = run_rows(TWO_KINDS, ONE, n=12).assign(params='{"steps": 10, "restarts": 1}')
    long = short.assign(params='{"steps": 50, "restarts": 1}', cell="other")
    rows = pd.concat([short, long], ignore_index=True)
    assert {"pgd compute steps 10", "pgd compute steps 50"} <= set(
        reports.headline_table(rows)["Attack"]
    )
    reports.write_report(rows, tmp_path, title="t", about={})
    text = (tmp_path / "index.html").read_text()
    assert "pgd compute steps 50" in text


class Page(HTMLParser):
    """Collects what a page loads, its links and its ids."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.links, self.ids, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        if tag != "a":
            self.loads += [values[name] for name in ("src", "href", "data") if name in values]


@pytest.fixture(scope="module")
def report(rows, tmp_path_factory):
    about = {"suite": "tiny <suite>", "seed": 0, "versions": {"torch": "2.13"}}
    about["cells"] = {cell: {"attack_params": {"steps": 20}} for cell in rows["cell"].unique()}
    out = tmp_path_factory.mktemp("run") / "report"
    return reports.write_report(rows, out, title="A <b>title</b>", about=about)


def test_the_page_needs_nothing_but_itself(report):
    page = Page(report.read_text())
    assert page.loads
    assert all(load.startswith("data:image/png;base64,") for load in page.loads)
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    assert not re.search(r"url\(|@import|https?://", report.read_text())
    for link in page.links:
        target = link.removeprefix("#")
        assert target in page.ids if link.startswith("#") else (report.parent / link).is_file()


def test_the_report_holds_all_its_parts(report, rows):
    text = report.read_text()
    for spec in reports.list_figures():
        if not spec.applies(rows):
            continue
        assert spec.title in text
        for kind in ("png", "svg"):
            assert (report.parent / "figures" / f"{spec.name}.{kind}").stat().st_size > 1000
    assert all(f'id="cell-{cell}"' in text for cell in rows["cell"].unique())
    assert "steps 20" in text
    assert "tiny &lt;suite&gt;" in text
    assert not list(report.parent.rglob("*.part"))


def test_names_are_escaped(tmp_path):
    name = "<script>alert(1)</script>"
    rows = run_rows({name: KINDS["dynconv"]}, ONE, n=12)
    rows["adv_macs"] = rows["clean_macs"]  # raises a flag, which names the model as well
    page = reports.write_report(rows, tmp_path, title=name, about={name: name})
    text = page.read_text()
    assert name not in text
    assert Page(text).tags.count("script") == 1


def test_tables_equal_summarize(report, rows):
    text = (report.parent / "tables" / "summary.csv").read_text()
    missing = {f"headroom_recovered{end}": [""] for end in ("", "_low", "_high")}
    table = pd.read_csv(StringIO(text), keep_default_na=False, na_values=missing)
    lines = table[table["attack"] != metrics.WORST_CASE].reset_index(drop=True)
    assert_frame_equal(lines, metrics.summarize(rows), check_dtype=False, rtol=0, atol=0)
    worst = table[table["attack"] == metrics.WORST_CASE].reset_index(drop=True)
    expected = metrics.summarize(metrics.worst_case(rows))
    assert_frame_equal(worst, expected, check_dtype=False, rtol=0, atol=0)


def test_equal_rows_give_equal_bytes(report, rows, tmp_path):
    reports.write_report(rows, tmp_path, title="again", about={})
    for path in sorted(report.parent.glob("*/*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(report.parent)).read_bytes()


def test_writing_again_removes_figures_that_no_longer_apply(tmp_path):
    reports.write_report(rows_of("odd_names"), tmp_path, title="masks", about={})
    assert (tmp_path / "figures" / "mask_maps.png").exists()
    reports.write_report(rows_of("resnet38"), tmp_path, title="static", about={})
    assert not (tmp_path / "figures" / "mask_maps.png").exists()


def test_flags_and_invalid_rows_are_seen_on_the_page(tmp_path):
    rows = run_rows({"skipnet38": KINDS["skipnet38"]}, ONE, n=20)
    rows.loc[rows.index[30:35], "valid"] = False
    rows.loc[rows.index[36], "adv_macs"] = np.nan
    text = reports.write_report(rows, tmp_path, title="t", about={}).read_text()
    assert "Invalid rows" in text
    assert "5 rows" in text
    assert "Not a number" in text
    table = pd.read_csv(tmp_path / "tables" / "flags.csv")
    assert {"invalid_rows", "not_a_number"} <= set(table["flag"])
    assert table["do"].notna().all()


@pytest.mark.parametrize("case", ["clean_only", "one_attack", "two_seeds", "resnet38"])
def test_unusual_rows_make_a_report(case, tmp_path):
    assert reports.write_report(rows_of(case), tmp_path, title=case, about={}).is_file()


def test_rows_without_cells_make_a_report(tmp_path):
    rows = rows_of("skipnet38").drop(columns="cell")
    page = Page(reports.write_report(rows, tmp_path, title="t", about={}).read_text())
    assert "cells" not in page.ids


def test_no_rows_is_the_users_error(rows, tmp_path):
    with pytest.raises(UserError, match="no rows"):
        reports.write_report(rows.iloc[:0], tmp_path, title="t", about={})


def test_the_headline_table_is_humanised(rows):
    table = reports.headline_table(rows)
    assert {"Model", "Attack", "Threat", "n", "Amplification"} <= set(table)
    static = table[table["Model"] == "resnet38"]
    assert set(static["Amplification"]) == {"1.0" + TIMES}
    assert set(static["Headroom recovered"]) == {DASH}
    assert table["Clean MACs"].str.contains("M").any()
