"""Metrics: the definitions, the invalid rule, the worst case and the bootstrap."""

import numpy as np
import pytest
from pandas.testing import assert_frame_equal
from synthetic_rows import KINDS, cell_rows, run_rows

from robustdyn import metrics


def test_headroom_and_amplification_follow_their_definitions():
    rows = cell_rows("skipnet38", KINDS["skipnet38"], n=4)
    rows["clean_macs"], rows["adv_macs"], rows["max_macs"] = 10.0, [10.0, 15.0, 20.0, 5.0], 20.0
    assert metrics.headroom_recovered(rows).tolist() == [0.0, 0.5, 1.0, -0.5]
    assert metrics.amplification(rows).tolist() == [1.0, 1.5, 2.0, 0.5]


def test_static_models_have_no_headroom_and_amplification_exactly_one():
    rows = run_rows({"resnet38": KINDS["resnet38"]})
    summary = metrics.summarize(rows)
    for end in ("", "_low", "_high"):
        assert (summary[f"amplification{end}"] == 1.0).all()
        assert summary[f"headroom_recovered{end}"].isna().all()
        assert (summary[f"adv_macs{end}"] == rows["clean_macs"].iloc[0]).all()


def test_samples_without_headroom_are_left_out_of_the_mean():
    rows = cell_rows("skipnet38", KINDS["skipnet38"], n=4)
    rows["clean_macs"], rows["max_macs"] = [20.0, 10.0, 10.0, 20.0], 20.0
    rows["adv_macs"] = [20.0, 15.0, 20.0, 20.0]
    assert metrics.summarize(rows)["headroom_recovered"].item() == 0.75


def test_invalid_rows_count_as_no_attack():
    rows = cell_rows("skipnet38", KINDS["skipnet38"], eps=0.2)
    broken = rows.assign(valid=False)
    summary = metrics.summarize(broken).iloc[0]
    assert summary["invalid"] == len(rows)
    assert summary["robust_accuracy"] == summary["clean_accuracy"]
    assert summary["adv_macs"] == summary["clean_macs"]
    assert summary["amplification"] == 1.0
    assert (metrics.amplification(broken) == 1.0).all()
    assert not broken["adv_macs"].equals(broken["clean_macs"]), "the caller's rows were changed"
    repaired = metrics.without_invalid(broken)
    for column in ("adv_exit", "adv_gates"):
        assert repaired[column].tolist() == rows[column.replace("adv", "clean")].tolist()
    assert_frame_equal(metrics.without_invalid(repaired), repaired)


def test_an_attack_that_mends_a_wrong_sample_earns_no_robustness():
    rows = cell_rows("skipnet38", KINDS["skipnet38"], n=4)
    rows["label"], rows["clean_pred"], rows["adv_pred"] = 1, [1, 1, 0, 0], [1, 0, 1, 0]
    summary = metrics.summarize(rows)
    assert summary["clean_accuracy"].item() == 0.5
    assert summary["robust_accuracy"].item() == 0.25


def test_intervals_hold_the_estimate_and_shrink_with_n():
    kind = KINDS["sdn_resnet"]
    widths = []
    for n in (50, 200, 800):
        line = metrics.summarize(cell_rows("sdn_resnet", kind, n=n)).iloc[0]
        for name in metrics.METRICS:
            assert line[f"{name}_low"] <= line[name] <= line[f"{name}_high"]
        widths.append(line["headroom_recovered_high"] - line["headroom_recovered_low"])
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_interval_has_the_width_that_theory_gives():
    values = np.random.default_rng(0).normal(size=1000)
    interval = metrics.mean_interval(values, resamples=4000)
    assert interval.mean == pytest.approx(values.mean())
    expected = 2 * 1.96 * values.std() / np.sqrt(len(values))
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_the_bootstrap_is_deterministic_and_takes_its_seed():
    rows = run_rows(n=30)
    assert_frame_equal(metrics.summarize(rows), metrics.summarize(rows))
    other = metrics.summarize(rows, seed=1)
    assert not other["clean_macs_low"].equals(metrics.summarize(rows)["clean_macs_low"])
    assert other["clean_macs"].equals(metrics.summarize(rows)["clean_macs"])


def test_clean_and_attacked_values_stay_together():
    """Paired: an attack that adds the same to every sample has an interval of one width."""
    rows = cell_rows("skipnet38", KINDS["skipnet38"])
    rows["adv_macs"] = rows["clean_macs"] + 1e6
    line = metrics.summarize(rows).iloc[0]
    for end in ("_low", "_high"):
        assert line[f"adv_macs{end}"] - line[f"clean_macs{end}"] == pytest.approx(1e6)


def test_several_seeds_of_a_sample_are_one_sample():
    one = run_rows({"dynconv": KINDS["dynconv"]}, (("pgd", "compute"),), eps=(8 / 255,))
    five = one.loc[one.index.repeat(5)].reset_index(drop=True)
    assert_frame_equal(metrics.summarize(five), metrics.summarize(one), rtol=1e-12)


def test_summarize_groups_by_what_it_is_told():
    rows = run_rows(n=20)
    summary = metrics.summarize(rows, by=["model"])
    assert summary["model"].tolist() == sorted(KINDS)
    assert list(metrics.summarize(rows).columns[:6]) == list(metrics.LINE)


@pytest.mark.parametrize("column", ["estimator", "split", "params"])
def test_what_would_be_averaged_silently_becomes_a_column(column):
    rows = run_rows({"dynconv": KINDS["dynconv"]}, (("pgd", "compute"),), n=20)
    rows.loc[rows["sample_id"] < 10, column] = "other"
    assert column in metrics.summarize(rows)


def test_worst_case_is_pointwise():
    attacks = (("pgd", "cross_entropy"), ("pgd", "compute"), ("noise", ""))
    rows = run_rows({"dynconv": KINDS["dynconv"]}, attacks, eps=(8 / 255,))
    worst = metrics.worst_case(rows)
    hostile = rows[rows["attack"] != "clean"]
    by_sample = hostile.groupby("sample_id")
    right = (hostile["adv_pred"] == hostile["label"]).groupby(hostile["sample_id"]).all()
    worst = worst.set_index("sample_id")
    assert set(worst["attack"]) == {metrics.WORST_CASE}
    assert (worst["adv_macs"] == by_sample["adv_macs"].max()).all()
    assert ((worst["adv_pred"] == worst["label"]) == right).all()
    lowest = metrics.summarize(hostile)["robust_accuracy"].min()
    assert metrics.summarize(worst.reset_index())["robust_accuracy"].item() <= lowest


def test_worst_case_ignores_invalid_attacks_and_clean_cells():
    rows = run_rows({"dynconv": KINDS["dynconv"]}, (("pgd", "compute"),), eps=(8 / 255,))
    worst = metrics.worst_case(rows.assign(valid=False))
    assert worst["adv_macs"].equals(worst["clean_macs"])
    assert metrics.worst_case(rows[rows["attack"] == "clean"]).empty
