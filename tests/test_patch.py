"""Patches and frames: only a part of the input changes, and that part is put to use."""

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.draws import sample_seeds
from robustdyn.attacks.patch import PLACES, window_mask

ANY = rd.Threat("linf", 1.0)
IMAGES = [s.name for s in rd.list_models() if s.name in zoo.KINDS and s.task == "image"]
SEQUENCES = [n for n in zoo.KINDS if n not in IMAGES]


@torch.no_grad()
def macs(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.macs(), trace.max_macs()


def patched(model, x, y, threat=ANY, **params):
    params = {"steps": 8, "draws": 2, "objective": "slow"} | params
    return attacks.get("patch")(model, x, y, threat=threat, **params)


def box(changed):
    """The height and width of the box around the True values of each sample (B, C, H, W)."""
    rows, columns = changed.any(1).any(2), changed.any(1).any(1)

    def extent(line):
        places = line.nonzero()[:, 1]
        return int(places.max() - places.min()) + 1 if len(places) else 0

    return [(extent(r[None]), extent(c[None])) for r, c in zip(rows, columns, strict=True)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", IMAGES)
def test_a_patch_of_an_image_is_a_square_of_the_area(name, place):
    x, y = zoo.samples(name, 16)
    x_adv = patched(zoo.model(name), x, y, place=place)
    changed = x_adv != x
    assert ANY.is_met(x_adv, x).all()
    assert all(height <= 4 and width <= 4 for height, width in box(changed))  # 16 of 784: 2 %
    assert changed.any() or place != "random"  # a corner may have nothing to give


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_patch_of_a_sequence_is_a_stretch_of_time(name, place):
    x, y = zoo.samples(name, 16)
    x_adv = patched(zoo.model(name), x, y, place=place, area=0.2)
    steps = (x_adv != x).any(2)
    length = round(0.2 * x.shape[1])
    for line in steps:
        places = line.nonzero()[:, 0]
        assert not len(places) or places.max() - places.min() < length


def test_windows_lie_where_they_are_said_to():
    corner = window_mask(torch.zeros(2, 3, 8, 8), 0.25, "corner")
    centre = window_mask(torch.zeros(2, 3, 8, 8), 0.25, "centre")
    assert corner.shape == (1, 3, 8, 8)
    assert corner[0, :, :4, :4].all()
    assert corner.sum() == 48
    assert centre[0, :, 2:6, 2:6].all()
    assert centre.sum() == 48
    assert window_mask(torch.zeros(1, 10, 4), 0.3, "corner")[0, :3].all()
    assert window_mask(torch.zeros(1, 2, 3, 8, 8), 0.25, "corner").sum() == 2 * 3 * 16


@pytest.mark.parametrize("place", PLACES)
def test_a_patch_is_alike_in_any_batch_and_run(place):
    x, y = zoo.samples("sdn_resnet", 24)
    seeds = sample_seeds(1, range(24))
    model = zoo.model("sdn_resnet")
    together = patched(model, x, y, place=place, seeds=seeds, steps=4)
    assert torch.equal(patched(model, x, y, place=place, seeds=seeds, steps=4), together)
    part = patched(model, x[5:9], y[5:9], place=place, seeds=seeds[5:9], steps=4)
    assert torch.equal(part, together[5:9])
    other = patched(model, x, y, place=place, seeds=sample_seeds(2, range(24)), steps=4)
    assert torch.equal(other, together) == (place != "random")


def test_a_patch_at_a_known_place_beats_one_that_falls_anywhere_and_that_beats_noise():
    x, y = zoo.samples("sdn_resnet", 24)
    model = zoo.model("sdn_resnet")
    known, anywhere = (
        macs(model, patched(model, x, y, place=place, area=0.04, steps=20))[0].mean()
        for place in ("centre", "random")
    )
    clean = macs(model, x)[0]
    window = window_mask(x, 0.04, "centre")
    noisy = attacks.get("noise")(model, x, y, threat=rd.Threat("linf", 1.0, mask=window))
    by_noise = macs(model, noisy)[0].mean()
    assert known > anywhere > clean.mean()
    assert known > by_noise


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_a_patch_keeps_to_a_small_eps_and_a_mask(place, eps):
    x, y = zoo.samples("sdn_resnet", 16)
    mask = torch.rand(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)) < 0.5
    threat = rd.Threat("linf", eps, mask=mask)
    x_adv = patched(zoo.model("sdn_resnet"), x, y, threat, place=place, area=0.5)
    assert threat.is_met(x_adv, x).all()


@pytest.mark.parametrize("count", [1, 3, 99])
@pytest.mark.parametrize("name", SEQUENCES)
def test_no_more_time_steps_change_than_allowed(name, count):
    x, y = zoo.samples(name, 16)
    threat = rd.Threat("linf", 0.1)
    params = {"objective": "slow", "threat": threat, "steps": 8}
    x_adv = attacks.get("frames")(zoo.model(name), x, y, frames=count, **params)
    assert threat.is_met(x_adv, x).all()
    assert ((x_adv != x).any(2).sum(1) <= count).all()
    part = attacks.get("frames")(
        zoo.model(name), x[3:7], y[3:7], frames=count, seeds=range(3, 7), **params
    )
    assert torch.equal(part, x_adv[3:7])


@pytest.mark.parametrize("name", SEQUENCES)
def test_more_time_steps_do_more_and_all_do_more_than_noise(name):
    x, y = zoo.samples(name, 24)
    threat, model = rd.Threat("linf", 0.1), zoo.model(name)
    few, many = (
        macs(
            model,
            attacks.get("frames")(
                model, x, y, threat=threat, objective="slow", frames=count, steps=15
            ),
        )[0].mean()
        for count in (2, 8)
    )
    by_noise = macs(model, attacks.get("noise")(model, x, y, threat=threat))[0].mean()
    assert many > few > macs(model, x)[0].mean()
    assert many > by_noise


def test_the_frames_are_those_that_matter():
    """A gate that reads time step 2 of a clip: that one is chosen."""

    class Watching(tiny.Skip):
        def margin(self, x):
            return self.scale * (x[:, 2].mean((1, 2, 3)) - 0.6)

        def forward(self, x):
            flat = (x[:, 0] - 0.5).flatten(1)
            return self.head(flat) + 0 * self.gated(x, flat)

    x = torch.full((16, 4, 1, 4, 4), 0.5)
    y = torch.zeros(16, dtype=torch.long)
    x_adv = attacks.get("frames")(
        Watching(), x, y, threat=rd.Threat("linf", 0.3), objective="slow", frames=1, steps=10
    )
    changed = (x_adv != x).flatten(2).any(2)
    assert changed[:, 2].all()
    assert changed.sum() == 16


def test_images_have_no_time_steps():
    x, y = tiny.inputs()
    with pytest.raises(rd.UserError, match="no time steps"):
        attacks.get("frames")(tiny.Skip(), x, y, threat=ANY)
    assert attacks.get("frames").needs == "sequences"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("patch", {"area": 0}),
        ("patch", {"area": 1.5}),
        ("patch", {"place": "corners"}),
        ("patch", {"draws": 0}),
        ("frames", {"frames": 0}),
        ("frames", {"steps": True}),
    ],
)
def test_impossible_values_are_refused(name, params):
    with pytest.raises(rd.UserError):
        attacks.check_params(name, "", params)
