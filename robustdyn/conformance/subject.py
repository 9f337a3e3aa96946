"""Builds what is checked: the model, and inputs that bring its gates to decide in many ways."""

import torch

from robustdyn.conformance.finding import Subject, in_one_line
from robustdyn.data import load_dataset
from robustdyn.errors import UserError
from robustdyn.registry import create_model, get_model_spec

REAL_SAMPLES = 256
CHECKED_SAMPLES = 16


def make_subject(name: str, dataset: str | None = None) -> Subject:
    """Return the subject of a model's check.

    The real samples are of the calibration split. A third of the inputs are some of them, a third
    are those half drowned in noise, and a third are noise.

    Raises:
        UserError: if the model or the dataset is unknown, or the model cannot be built.
    """
    spec = get_model_spec(name)
    try:
        model = create_model(name, dataset)
    except UserError:
        raise
    except Exception as error:
        cuda = "cuda" in str(error).lower()
        raise UserError(
            f"Model '{name}' cannot be built: {in_one_line(error)}",
            "Build it inside `with robustdyn.without_cuda():`." if cuda else "Mend its function.",
        ) from error
    data = load_dataset(str(model.dataset), "calibration")
    real = data.stack(max(data.batches(REAL_SAMPLES), key=len))
    few = real[:CHECKED_SAMPLES]
    noise = torch.rand(few.shape, generator=torch.Generator().manual_seed(0))
    x = torch.cat([few, 0.5 * few + 0.5 * noise, noise])
    return Subject(spec, model, x, real, data.info.num_classes)
