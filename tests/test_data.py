"""Datasets: what is in them, how they are read, and that the embedded files can be made again."""

import gzip
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from robustdyn.data import Dataset, get_info, list_datasets, load_dataset
from robustdyn.data import embed as embedding
from robustdyn.data import files as data_files
from robustdyn.data.idx import read_idx
from robustdyn.data.timeseries import read_ts
from robustdyn.errors import UserError

EMBEDDED_SIZES = {
    ("fashion_mnist", "calibration"): 5000,
    ("fashion_mnist", "test"): 10000,
    ("japanese_vowels", "train"): 216,
    ("japanese_vowels", "calibration"): 54,
    ("japanese_vowels", "test"): 370,
}


@pytest.fixture(scope="module")
def splits():
    return {key: load_dataset(*key) for key in EMBEDDED_SIZES}


@pytest.fixture(params=EMBEDDED_SIZES, ids="-".join)
def dataset(request, splits):
    return splits[request.param]


def idx_bytes(array):
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture(scope="module")
def train_folder(tmp_path_factory):
    """A stand-in for Fashion-MNIST's train files: the real calibration images, else blank."""
    with np.load(data_files.EMBEDDED / "fashion_mnist_calibration.npz") as arrays:
        calibration = dict(arrays)
    images = np.zeros((60000, 28, 28), dtype=np.uint8)
    images[calibration["sample_ids"]] = calibration["values"][:, 0]
    labels = np.arange(60000) % 10
    labels[calibration["sample_ids"]] = calibration["labels"]
    folder = tmp_path_factory.mktemp("data") / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(labels)))
    return folder


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    monkeypatch.delenv("ROBUSTDYN_DATA", raising=False)
    monkeypatch.setattr(data_files, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")


# What is in the embedded splits


def test_every_split_but_one_is_embedded():
    named = {(info.name, split) for info in list_datasets() for split in info.splits}
    assert named == {*EMBEDDED_SIZES, ("fashion_mnist", "train")}


def test_size_types_and_range(dataset):
    assert len(dataset) == EMBEDDED_SIZES[dataset.info.name, dataset.split]
    assert dataset.labels.dtype == dataset.sample_ids.dtype == np.int64
    assert len(dataset.labels) == len(dataset.sample_ids) == len(dataset)
    assert len(np.unique(dataset.sample_ids)) == len(dataset)
    assert set(dataset.labels) == set(range(dataset.info.num_classes))
    for batch in dataset.batches(1000):
        x = dataset.stack(batch)
        assert x.dtype == torch.float32
        assert x.min() >= 0
        assert x.max() <= 1


def test_images_reach_both_bounds(splits):
    x = splits["fashion_mnist", "test"].stack(range(100))
    assert (x.min(), x.max()) == (0, 1)


def test_samples_have_the_shape_that_info_states(dataset):
    x, label = dataset[0]
    assert isinstance(label, int)
    assert label == dataset.labels[0]
    stated = dataset.info.input_shape
    assert x.dim() == len(stated)
    assert all(want is None or want == have for want, have in zip(stated, x.shape, strict=True))


@pytest.mark.parametrize(
    ("name", "split", "per_class"),
    [
        ("fashion_mnist", "calibration", 500),
        ("fashion_mnist", "test", 1000),
        ("japanese_vowels", "train", 24),
        ("japanese_vowels", "calibration", 6),
    ],
)
def test_classes_are_balanced(splits, name, split, per_class):
    assert set(np.bincount(splits[name, split].labels)) == {per_class}


def test_vowels_train_and_calibration_share_the_original_train_file(splits):
    train, calibration = (splits["japanese_vowels", s] for s in ("train", "calibration"))
    ids = np.concatenate([train.sample_ids, calibration.sample_ids])
    assert sorted(ids) == list(range(270))


def test_vowels_keep_their_own_lengths(splits):
    lengths = [len(x) for x, _ in splits["japanese_vowels", "test"]]
    assert (min(lengths), max(lengths)) == (7, 29)


@pytest.mark.parametrize(
    ("name", "split", "tolerance"),
    [
        ("japanese_vowels", "train", 5.1e-5),  # where the constants come from, rounded to 4 digits
        ("fashion_mnist", "test", 2e-3),  # a sample of the same kind: train is not embedded
    ],
)
def test_mean_and_std_match_the_data(splits, name, split, tolerance):
    info, dataset = get_info(name), splits[name, split]
    features = [dataset.stack(batch).double() for batch in dataset.batches(len(dataset))]
    if info.task == "image":
        features = [x.movedim(1, -1) for x in features]
    values = torch.cat([x.flatten(end_dim=-2) for x in features])  # (count, channels or features)
    for stated, found in ((info.mean, values.mean(0)), (info.std, values.std(0, correction=0))):
        torch.testing.assert_close(
            torch.tensor(stated, dtype=torch.float64), found, atol=tolerance, rtol=0
        )


# Fashion-MNIST's train split, from IDX files


@pytest.mark.parametrize("given_by", ["root", "parent of the usual layout", "environment"])
def test_train_split_leaves_out_calibration(
    train_folder, nothing_installed, monkeypatch, splits, given_by
):
    root = {"root": train_folder, "parent of the usual layout": train_folder.parents[1]}
    if given_by == "environment":
        monkeypatch.setenv("ROBUSTDYN_DATA", str(train_folder))
    train = load_dataset("fashion_mnist", "train", root=root.get(given_by))
    calibration = splits["fashion_mnist", "calibration"]
    assert len(train) == 55000
    both = np.concatenate([train.sample_ids, calibration.sample_ids])
    assert np.array_equal(np.sort(both), np.arange(60000))
    assert np.array_equal(train.labels, train.sample_ids % 10)
    assert train.stack(np.arange(0, 55000, 1000)).max() == 0  # the stand-in's are blank


def test_missing_train_files_name_the_remedy(tmp_path, nothing_installed):
    with pytest.raises(UserError, match="train-images-idx3-ubyte") as caught:
        load_dataset("fashion_mnist", "train", root=tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "dataset-fashion-mnist" in caught.value.remedy
    assert "ROBUSTDYN_DATA" in caught.value.remedy


@pytest.mark.parametrize("other", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
def test_another_dataset_under_the_same_file_names_is_refused(
    tmp_path, train_folder, nothing_installed, other
):
    for path in train_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    blank = np.zeros((60000, 28, 28) if "images" in other else 60000)
    (tmp_path / f"{other}.gz").unlink(missing_ok=True)
    (tmp_path / other).unlink(missing_ok=True)
    (tmp_path / other).write_bytes(idx_bytes(blank))
    with pytest.raises(UserError, match="not Fashion-MNIST"):
        load_dataset("fashion_mnist", "train", root=tmp_path)


def test_embedded_splits_need_no_folder(nothing_installed, tmp_path):
    assert len(load_dataset("fashion_mnist", root=tmp_path)) == 10000


# The Dataset class


def test_batches_cover_everything_once_in_one_shape(dataset):
    batches = dataset.batches(64)
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(dataset)))
    assert max(map(len, batches)) <= 64
    lengths = [dataset.stack(batch).shape[1] for batch in batches]  # stack: one shape each
    assert lengths == sorted(lengths)
    assert all(np.all(np.diff(batch) > 0) for batch in batches)
    assert all(map(np.array_equal, batches, dataset.batches(64)))


def test_stack_equals_samples_one_by_one(dataset):
    for batch in dataset.batches(5)[:4]:
        one_by_one = torch.stack([dataset[int(position)][0] for position in batch])
        assert torch.equal(dataset.stack(batch), one_by_one)


def test_stack_returns_a_copy(dataset):
    before = dataset[3][0].clone()
    dataset.stack([3]).fill_(0.5)
    assert torch.equal(dataset[3][0], before)


def test_subset_of_a_subset_keeps_ids_labels_and_inputs(dataset):
    outer = np.arange(len(dataset))[::-3]
    chosen = dataset.subset(outer).subset([4, 0, 9])
    positions = outer[[4, 0, 9]]
    assert len(chosen) == 3
    assert np.array_equal(chosen.sample_ids, dataset.sample_ids[positions])
    for i, position in enumerate(positions):
        assert torch.equal(chosen[i][0], dataset[int(position)][0])
        assert chosen[i][1] == dataset.labels[position]
    assert sorted(np.concatenate(chosen.batches(2))) == [0, 1, 2]


def test_subset_takes_a_mask_and_may_be_empty(dataset):
    mask = dataset.labels == 2
    assert np.array_equal(dataset.subset(mask).sample_ids, dataset.sample_ids[mask])
    assert len(dataset.subset([])) == 0
    assert dataset.subset([]).batches(8) == []


def test_iteration_ends_and_bad_positions_are_errors(dataset):
    few = dataset.subset(range(3))
    assert len(list(few)) == 3
    assert torch.equal(few[-1][0], few[2][0])
    with pytest.raises(IndexError):
        few[3]
    with pytest.raises(TypeError):
        few[0:2]


def test_dataset_survives_pickling(dataset):
    few = dataset.subset([1, 2])
    again = pickle.loads(pickle.dumps(few))
    assert isinstance(again, Dataset)
    assert torch.equal(again[1][0], few[1][0])


def test_mixed_lengths_do_not_stack(splits):
    dataset = splits["japanese_vowels", "test"]
    shortest, longest = dataset.batches(1)[0], dataset.batches(1)[-1]
    with pytest.raises(UserError, match="2 different lengths"):
        dataset.stack([*shortest, *longest])


def test_batch_size_must_be_positive(dataset):
    with pytest.raises(UserError, match="Batch size 0"):
        dataset.batches(0)


# Names


def test_misspelt_names_get_a_suggestion():
    with pytest.raises(UserError, match="Did you mean 'fashion_mnist'"):
        load_dataset("fashion-mnst")
    with pytest.raises(UserError, match="Did you mean 'calibration'"):
        load_dataset("japanese_vowels", "calibrate")


def test_names_and_information_need_no_torch():
    code = "import sys, robustdyn.data as d; d.list_datasets(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# IDX and .ts files


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(5,), (0,), (3, 4, 2)])
def test_idx_round_trip(tmp_path, pack, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "array"
    path.write_bytes(pack(idx_bytes(array)))
    assert np.array_equal(read_idx(path, ndim=len(shape)), array)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "23 bytes of values instead of 24"),
        (lambda data: data + b"\0", "25 bytes of values instead of 24"),
        (lambda data: data[:9], "ends inside the header"),
        (lambda data: gzip.compress(data)[:-9], "gzip"),
        (lambda data: b"\x1f\x8b not gzip after all", "gzip"),
        (lambda data: b"", "not an IDX file"),
        (lambda data: b"\x89PNG" + data, "not an IDX file"),
        (lambda data: idx_bytes(np.zeros(24)), "not an IDX file of bytes with 3 dim"),
    ],
)
def test_damaged_idx_is_an_error(tmp_path, damage, message):
    path = tmp_path / "images"
    path.write_bytes(damage(idx_bytes(np.zeros((2, 3, 4)))))
    with pytest.raises(UserError, match=message) as caught:
        read_idx(path, ndim=3)
    assert str(path) in caught.value.message


TS_HEADER = "#a comment\n@problemName p\n@classLabel true a b\n@data\n"


def test_ts_series_are_time_first_and_keep_their_length(tmp_path):
    path = tmp_path / "p.ts"
    path.write_text(TS_HEADER + "1,2,3:4,5,6:b\n7:8:a\n")
    content = read_ts(path)
    assert content.classes == ("a", "b")
    assert content.labels.tolist() == [1, 0]
    assert [x.tolist() for x in content.series] == [[[1, 4], [2, 5], [3, 6]], [[7, 8]]]


@pytest.mark.parametrize(
    ("line", "message"),
    [("1,2:3:a", "line 5"), ("1,?:3,4:a", "line 5"), ("1:2:c", "line 5"), ("", "no series")],
)
def test_damaged_ts_is_an_error(tmp_path, line, message):
    path = tmp_path / "p.ts"
    path.write_text(TS_HEADER + line + "\n")
    with pytest.raises(UserError, match=message):
        read_ts(path)


# Making the embedded files


@pytest.fixture
def vowels_folder(tmp_path):
    """Small files like JapaneseVowels': 2 speakers with 10 series of 1 to 4 frames each."""
    random = np.random.default_rng(0)
    for part in ("TRAIN", "TEST"):
        lines = []
        for i in range(20):
            channels = random.uniform(-1.8, 2.2, (12, 1 + i % 4)).round(6)
            row = ":".join(",".join(map(str, channel)) for channel in channels)
            lines.append(f"{row}:{'ab'[i // 10]}\n")
        (tmp_path / f"JapaneseVowels_{part}.ts").write_text(TS_HEADER + "".join(lines))
    return tmp_path


def test_embedding_gives_the_same_bytes_again(vowels_folder, monkeypatch):
    first = [
        path.read_bytes() for path in embedding.embed_japanese_vowels(vowels_folder, vowels_folder)
    ]
    monkeypatch.setattr("time.time", lambda: 2e9)
    again = [
        path.read_bytes() for path in embedding.embed_japanese_vowels(vowels_folder, vowels_folder)
    ]
    assert len(first) == 3
    assert first == again


def test_embedding_keeps_values_and_ids(vowels_folder):
    original = read_ts(vowels_folder / "JapaneseVowels_TRAIN.ts")
    paths = embedding.embed_japanese_vowels(vowels_folder, vowels_folder)
    ids = {}
    for path in paths[:2]:  # train, calibration
        with np.load(path, allow_pickle=False) as arrays:
            dataset = Dataset(get_info("japanese_vowels"), path.stem, **arrays)
        ids[path.stem] = dataset.sample_ids.tolist()
        for (x, label), i in zip(dataset, dataset.sample_ids, strict=True):
            assert label == original.labels[i]
            np.testing.assert_allclose(x.numpy() * 4.4 - 2, original.series[i], atol=1e-6)
    assert ids["japanese_vowels_calibration"] == [4, 9, 14, 19]
    assert sorted(i for part in ids.values() for i in part) == list(range(20))


def test_embedding_refuses_values_outside_the_fixed_range():
    with pytest.raises(UserError, match=r"outside -2 to 2\.4"):
        embedding.scale_japanese_vowels(np.array([0.0, 2.5]))


def test_embedding_refuses_other_images(tmp_path):
    for names in data_files.FASHION_MNIST_FILES.values():
        for name, shape in zip(names, ((4, 28, 28), (4,)), strict=True):
            (tmp_path / name).write_bytes(idx_bytes(np.zeros(shape)))
    with pytest.raises(UserError, match="original Fashion-MNIST bytes"):
        embedding.embed_fashion_mnist(tmp_path, tmp_path)
    assert not list(tmp_path.glob("*.npz"))


def test_draw_is_balanced_and_fixed():
    labels = np.arange(60) % 3
    drawn = embedding.draw_balanced(labels, 5)
    assert np.bincount(labels[drawn]).tolist() == [5, 5, 5]
    assert len(set(drawn)) == 15
    assert np.array_equal(drawn, embedding.draw_balanced(labels, 5))


def test_embedded_files_hold_no_time_stamps_and_no_leftovers():
    for name, split in EMBEDDED_SIZES:
        with zipfile.ZipFile(data_files.EMBEDDED / f"{name}_{split}.npz") as archive:
            members = archive.infolist()
        expected = {"values.npy", "labels.npy", "sample_ids.npy"}
        if name == "japanese_vowels":
            expected.add("lengths.npy")
        assert {member.filename for member in members} == expected
        assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
