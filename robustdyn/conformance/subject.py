"""Builds what is checked: the model, and inputs that bring its gates to decide in many ways."""

import torch

from robustdyn.conformance.finding import Subject, in_one_line
from robustdyn.data import load_dataset
from robustdyn.errors import UserError
from robustdyn.registry import create_model, get_model_spec

REAL_SAMPLES = 16


def make_subject(name: str, dataset: str | None = None) -> Subject:
    """Return the subject of a model's check.

    A third of the inputs are samples of the calibration split, a third are those half drowned in
    noise, and a third are noise.

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
    largest = max(data.batches(256), key=len)
    real = data.stack(largest[:REAL_SAMPLES])
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0))
    x = torch.cat([real, 0.5 * real + 0.5 * noise, noise])
    return Subject(spec, model, x, data.info.num_classes)
