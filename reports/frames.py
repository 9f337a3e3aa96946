"""From raw rows to what figures draw: labelled, valid, at one threat per panel."""

from collections.abc import Iterator

from pandas import DataFrame

from robustdyn.labels import labelled

PANEL = ["dataset", "model", "threat"]


def attacked(rows: DataFrame) -> DataFrame:
    """Return the labelled rows without the clean cells; every row still has its clean values."""
    rows = labelled(rows)
    return rows[rows["attack"] != "clean"]


def at_reference_threat(rows: DataFrame) -> DataFrame:
    """Return the labelled rows at one eps per dataset and norm.

    It is the eps at which most attacks on most models were run; of several, the largest.
    """
    pairs = rows[["dataset", "norm", "eps", "model", "attack_label"]].drop_duplicates()
    sizes = pairs.groupby(["dataset", "norm", "eps"]).size().rename("pairs").reset_index()
    sizes = sizes.sort_values(["pairs", "eps"]).drop_duplicates(["dataset", "norm"], keep="last")
    return rows.merge(sizes[["dataset", "norm", "eps"]], on=["dataset", "norm", "eps"])


def has_attacks(rows: DataFrame) -> bool:
    """Return whether the rows hold any attack."""
    return bool((rows["attack"] != "clean").any())


def panels_of(rows: DataFrame) -> list[tuple[str, str, str]]:
    """Return the (dataset, model, threat) of all panels, in order."""
    keys = rows[[*PANEL, "norm"]].drop_duplicates(PANEL).sort_values(["dataset", "norm", "model"])
    return [tuple(key) for key in keys[PANEL].itertuples(index=False)]


def panel_rows(rows: DataFrame) -> Iterator[tuple[tuple[str, str, str], DataFrame]]:
    """Yield ((dataset, model, threat), its rows) in the order of `panels_of`."""
    groups = dict(list(rows.groupby(PANEL)))
    for key in panels_of(rows):
        yield key, groups[key]


def clean_samples(rows: DataFrame) -> DataFrame:
    """Return one row per sample of a panel: for its clean values."""
    return rows.drop_duplicates("sample_id")


def gates_of_kind(rows: DataFrame, keep_kind) -> DataFrame:
    """Return one line per row and gate: attack_label, gate, place, clean and adv keep.

    Args:
        rows: labelled rows of one model.
        keep_kind: kind -> bool, which gates to keep.
    """
    columns = ["gate_names", "gate_kinds", "clean_gates", "adv_gates"]
    gates = rows[["attack_label", "sample_id", *columns]].copy()
    gates["place"] = [list(range(len(names))) for names in gates["gate_names"]]
    gates = gates.explode([*columns, "place"]).dropna(subset="place")
    gates = gates[[bool(keep_kind(kind)) for kind in gates["gate_kinds"]]]
    gates = gates.rename(columns={"gate_names": "gate", "gate_kinds": "kind"})
    types = {"clean_gates": float, "adv_gates": float, "place": int}
    return gates.astype(types)


def with_gates(rows: DataFrame, keep_kind) -> DataFrame:
    """Return the rows of models with a gate of a kind for which `keep_kind` is true."""
    models = rows.drop_duplicates(["model", "dataset"])
    models = models[[any(map(keep_kind, kinds)) for kinds in models["gate_kinds"]]]
    return rows.merge(models[["model", "dataset"]])


def has_gates(rows: DataFrame, keep_kind) -> bool:
    """Return whether any row has a gate of a kind for which `keep_kind` is true."""
    first = rows.drop_duplicates(["model", "dataset"])["gate_kinds"]
    return any(keep_kind(kind) for kinds in first for kind in kinds)
