"""Flags on made-up rows: each is raised by its cause, and by nothing else."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from synthetic_rows import run_rows

from robustdyn import attacks
from robustdyn.checks import FLAGS, find_flags

DIAGNOSES = [
    *("clean_bit_operations", "adv_bit_operations", "max_bit_operations"),
    *("params", "fitted_on", "clean_expected_macs", "adv_expected_macs", "gate_gradient"),
    *("loss_gradient", "repeatable", "still_rising", "uses_gradient"),
]
ATTACKS = (("noise", ""), ("pgd", "cross_entropy"), ("pgd", "compute"), ("square", "compute"))


def flags_of(rows):
    return {flag.name: flag for flag in find_flags(rows)}


def sound_rows():
    return run_rows(attacks=ATTACKS, n=120, eps=(2 / 255, 8 / 255))


def test_sound_rows_raise_no_flag():
    assert not find_flags(sound_rows())
    assert not find_flags(sound_rows().drop(columns=DIAGNOSES))
    assert not find_flags(sound_rows().iloc[:0])


def of(rows, objective, model="dynconv"):
    return (rows["model"] == model) & (rows["objective"] == objective)


def spoil_invalid(rows):
    rows.loc[rows.index[30:35], "valid"] = False


def spoil_nan(rows):
    rows.loc[rows.index[30], "adv_macs"] = np.nan


def spoil_static(rows):
    chosen = rows["static"] & (rows["attack"] == "noise")
    rows.loc[chosen, "adv_macs"] -= 1.0


def spoil_maximum(rows):
    rows.loc[rows.index[30], "adv_macs"] = 2 * rows.loc[rows.index[30], "max_macs"]


def spoil_clean(rows):
    rows.loc[rows.index[30], "clean_macs"] *= 0.5


def spoil_movement(rows):
    chosen = of(rows, "compute")
    rows.loc[chosen, "adv_macs"] = rows.loc[chosen, "clean_macs"]


def spoil_noise(rows):
    rows.loc[rows["attack"] == "noise", "adv_pred"] = -1


def spoil_order(rows):
    chosen = (rows["objective"] == "cross_entropy") & (rows["eps"] > 0.02)
    rows.loc[chosen, "adv_pred"] = rows.loc[chosen, "clean_pred"]


def spoil_headroom(rows):
    chosen = rows["model"] == "dynconv"
    rows.loc[chosen, ["clean_macs", "adv_macs"]] = rows.loc[chosen, "max_macs"].iloc[0]


def spoil_split(rows):
    rows.loc[rows["model"] == "dynconv", "fitted_on"] = "test"


def spoil_repetition(rows):
    rows.loc[rows.index[7], "repeatable"] = False


def spoil_gate_gradient(rows):
    rows.loc[of(rows, "compute") & (rows["sample_id"] % 4 == 0), "gate_gradient"] = False


def spoil_loss_gradient(rows):
    rows.loc[of(rows, "cross_entropy") & (rows["sample_id"] % 4 == 0), "loss_gradient"] = False


def spoil_white_box(rows):
    rows.loc[rows["attack"] == "square", "adv_macs"] = rows["max_macs"]


def spoil_steps(rows):
    short = of(rows, "compute") & (rows["eps"] > 0.02)
    longer = rows[short].assign(params='{"steps": 100}', adv_macs=rows["max_macs"], cell="longer")
    rows.loc[short, "params"] = '{"steps": 10}'
    for _, row in longer.iterrows():
        rows.loc[len(rows)] = row


def spoil_end(rows):
    rows.loc[of(rows, "compute"), "still_rising"] = True


def spoil_unbounded_compute(rows):
    rows.loc[of(rows, "compute"), "eps"] = 1.0


def spoil_unbounded_accuracy(rows):
    rows.loc[of(rows, "cross_entropy"), "eps"] = 1.0


def spoil_ranks(rows):
    chosen = of(rows, "compute")
    for when in ("clean", "adv"):
        rows.loc[chosen, f"{when}_expected_macs"] = -rows.loc[chosen, f"{when}_macs"]


def spoil_lines(rows):
    for _, row in rows[of(rows, "compute")].assign(cell="other").iterrows():
        rows.loc[len(rows)] = row


CAUSES = [
    ("invalid_rows", spoil_invalid),
    ("not_a_number", spoil_nan),
    ("static_moved", spoil_static),
    ("above_maximum", spoil_maximum),
    ("clean_differs", spoil_clean),
    ("compute_unmoved", spoil_movement),
    ("noise_wins", spoil_noise),
    ("not_monotone", spoil_order),
    ("no_headroom", spoil_headroom),
    ("fitted_on_test", spoil_split),
    ("randomised_judged_once", spoil_repetition),
    ("zero_gate_gradient", spoil_gate_gradient),
    ("zero_loss_gradient", spoil_loss_gradient),
    ("blackbox_wins", spoil_white_box),
    ("more_effort_gains", spoil_steps),
    ("still_rising", spoil_end),
    ("unbounded_attack_fails", spoil_unbounded_compute),
    ("unbounded_attack_fails", spoil_unbounded_accuracy),
    ("soft_and_hard_disagree", spoil_ranks),
    ("mixed_variants", spoil_lines),
]


@pytest.mark.parametrize(("name", "spoil"), CAUSES)
def test_each_flag_is_raised_by_its_cause(name, spoil):
    rows = sound_rows()
    spoil(rows)
    flags = flags_of(rows)
    flag = flags[name]
    assert flag.subjects
    assert all(text.strip() for text in flag[:4])
    labels = set(rows["model"])
    assert {subject.model for subject in flag.subjects} <= labels


def test_every_flag_has_a_cause_here():
    assert {flag.name for flag in FLAGS} == {name for name, _ in CAUSES}


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("compute_unmoved", spoil_movement),
        ("not_monotone", spoil_order),
        ("more_effort_gains", spoil_steps),
        ("unbounded_attack_fails", spoil_unbounded_compute),
        ("soft_and_hard_disagree", spoil_ranks),
    ],
)
def test_what_was_crafted_on_another_model_need_not_succeed(name, spoil):
    rows = sound_rows()
    spoil(rows)
    rows = rows[rows["model"] == "dynconv"]
    for source, is_raised in (("skipnet38", False), ("dynconv", True)):
        attacks = [f"{attack} from {source}" for attack in rows["attack"]]
        assert (name in flags_of(rows.assign(attack=attacks, source=source))) == is_raised


def test_a_few_samples_without_gradient_are_no_flag():
    rows = sound_rows()
    few = rows["sample_id"] % 40 == 0
    rows.loc[few, ["gate_gradient", "loss_gradient"]] = False
    assert not find_flags(rows)


def test_a_black_box_that_ties_is_no_flag():
    rows = sound_rows()
    compute = of(rows, "compute")
    best = rows.loc[compute & (rows["attack"] == "pgd"), "adv_macs"].to_numpy()
    rows.loc[compute & (rows["attack"] == "square"), "adv_macs"] = best
    assert not find_flags(rows)


def test_unbounded_attacks_that_succeed_are_no_flag():
    rows = sound_rows()
    chosen = rows["objective"] == "compute"
    rows.loc[chosen & (rows["eps"] > 0.02), "adv_macs"] = rows["max_macs"]
    rows.loc[chosen & (rows["eps"] > 0.02), "adv_expected_macs"] = rows["max_macs"]
    rows.loc[chosen & (rows["eps"] > 0.02), "eps"] = 1.0
    assert not flags_of(rows).keys() & {"unbounded_attack_fails"}


def test_more_steps_that_gain_nothing_are_no_flag():
    rows = sound_rows()
    rows.loc[of(rows, "compute"), "params"] = '{"steps": 10}'
    more = rows[of(rows, "compute")].assign(params='{"steps": 100}', cell="more")
    assert not find_flags(pd.concat([rows, more], ignore_index=True))


def test_checks_need_no_torch():
    import subprocess

    code = "import sys, robustdyn.checks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_flags_are_in_every_result(tmp_path):
    import json

    from click.testing import CliRunner

    from robustdyn.cli.run import command
    from robustdyn.results import load_metadata

    arguments = ["quickstart", "--limit", "2", "--jobs", "1", "--no-report", "--json"]
    for setting in ("models=skipnet", "attacks.steps=1"):
        arguments += ["--set", setting]
    done = CliRunner().invoke(command, [*arguments, "--out", str(tmp_path / "run")])
    answer = json.loads(done.stdout)
    assert isinstance(answer["flags"], list)
    for flag in answer["flags"]:
        assert {"flag", "model", "detail", "raised_if", "means", "do"} <= set(flag)
    assert all(isinstance(cell["flags"], list) for cell in load_metadata(tmp_path / "run"))


@pytest.mark.parametrize("attack", [attack.name for attack in attacks.list_attacks()])
def test_the_parameters_of_every_attack_can_be_judged(attack):
    """Also beside a longer run: some attacks have None where they choose their own number."""
    params = attacks.get(attack).params
    longer = {k: 1000 if k in ("steps", "queries", "restarts") else v for k, v in params.items()}
    rows = run_rows(attacks=ATTACKS, n=12)
    texts = [json.dumps(values, default=str) for values in (params, longer)]
    find_flags(pd.concat([rows.assign(params=text) for text in texts], ignore_index=True))
