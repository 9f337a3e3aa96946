"""Registering, finding and creating models; what users get wrong."""

import shutil

import pytest
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn import registry
from robustdyn.weights import find_weights


@pytest.fixture
def fresh(monkeypatch):
    """A registry in which a test may register."""
    rd.list_models()
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))


def test_a_user_registers_a_model_in_a_few_lines(fresh):
    @rd.register_model(family="instance.depth.layer_skip.gate", task="image")
    def my_model(num_classes, in_channels):
        """Mine."""
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 784, num_classes))

    model = rd.create_model("my_model")
    assert model.spec.summary == "Mine."
    assert model.dataset == "fashion_mnist"
    assert not model.training
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_a_builder_may_take_nothing_or_everything(fresh):
    @rd.register_model(family="static")
    def takes_nothing():
        return nn.Linear(1, 1)

    @rd.register_model(family="static", task="sequence")
    def takes_all(**offers):
        assert offers["input_shape"] == (None, 12)
        assert offers["in_channels"] == 12
        return nn.Linear(offers["in_channels"], offers["num_classes"])

    rd.create_model("takes_nothing")
    assert rd.create_model("takes_all").dataset == "japanese_vowels"


def test_a_name_is_taken_once(fresh):
    with pytest.raises(rd.UserError, match="registered already"):

        @rd.register_model(family="static")
        def resnet():
            return nn.Linear(1, 1)


def test_mistakes_are_answered(fresh, tmp_path):
    with pytest.raises(rd.UserError, match="Did you mean 'skipnet'"):
        rd.create_model("skipnet83")
    with pytest.raises(rd.UserError, match="Did you mean 'fashion_mnist'"):
        rd.create_model("resnet", "fashion_mnst")
    with pytest.raises(rd.UserError, match="not made for"):
        rd.create_model("resnet", "japanese_vowels")
    with pytest.raises(rd.UserError, match="no weights file"):
        rd.create_model("resnet", pretrained=tmp_path / "none.safetensors")
    with pytest.raises(rd.UserError, match="Unknown task"):
        rd.register_model(family="static", task="imag")

    @rd.register_model(family="static")
    def not_a_module():
        return "a string"

    with pytest.raises(rd.UserError, match="not an nn"):
        rd.create_model("not_a_module")


def test_altered_weights_are_refused(tmp_path):
    name = zoo.NAMES[0]
    shipped = find_weights(name, zoo.model(name).dataset)
    path = tmp_path / shipped.name
    shutil.copy(shipped, path)
    shutil.copy(shipped.with_suffix(".json"), path.with_suffix(".json"))
    rd.create_model(name, pretrained=path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(rd.UserError, match="hash"):
        rd.create_model(name, pretrained=path)


def test_weights_of_another_model_are_refused(tmp_path):
    path = find_weights("resnet", "fashion_mnist")
    with pytest.raises(rd.UserError, match="do not fit"):
        rd.create_model("skipnet", pretrained=path)
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"these are no weights")
    with pytest.raises(rd.UserError, match="do not fit"):
        rd.create_model("resnet", pretrained=garbage)


def test_a_model_of_ours_without_weights_says_how_to_train_it(monkeypatch):
    monkeypatch.setattr(registry, "find_weights", lambda name, dataset: None)
    with pytest.raises(rd.UserError, match="robustdyn train resnet"):
        rd.create_model("resnet")
    assert isinstance(rd.create_model("resnet", pretrained=False), nn.Module)
