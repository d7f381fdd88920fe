"""Datasets, from small files written here in the publishers' formats; nothing is downloaded."""

import gzip
import hashlib
import io
import struct
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pooch
import pytest

from cetsim import datasets
from cetsim.datasets import DataError, published


def idx(array):
    """Bytes of an IDX file."""
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist_arrays(train=12, test=7, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "train-images-idx3-ubyte": rng.integers(0, 256, (train, 5, 4)),
        "train-labels-idx1-ubyte": np.arange(train) % 10,
        "t10k-images-idx3-ubyte": rng.integers(0, 128, (test, 5, 4)),
        "t10k-labels-idx1-ubyte": np.arange(test)[::-1] % 10,
    }


def write_mnist(folder, spell=lambda name: name, **sizes):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = mnist_arrays(**sizes)
    for name, array in arrays.items():
        content = idx(array)
        name = spell(name)
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return arrays


def cifar10_arrays(sizes=(3, 2, 4, 2, 3, 5), seed=0):
    """For every file its labels and its images [n, 3, 32, 32]."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 10, n), rng.integers(0, 256, (n, 3, 32, 32)))
        for name, n in zip(published._CIFAR10, sizes, strict=True)
    }


def cifar10_bytes(arrays):
    return {
        name: np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1).astype(np.uint8).tobytes()
        for name, (y, x) in arrays.items()
    }


def write_cifar10(folder):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = cifar10_arrays()
    for name, content in cifar10_bytes(arrays).items():
        (folder / name).write_bytes(content)
    return arrays


def write_archive(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def load(name, data_dir):
    """`datasets.load`, without the warning that small files are not the published ones."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="not the published content")
        return datasets.load(name, data_dir)


def standardised(x, mean=0.5, sd=0.5):
    return sd * (x - np.mean(x)) / np.std(x) + mean


def assert_types(dataset):
    for x, y in ((dataset.train_x, dataset.train_y), (dataset.test_x, dataset.test_y)):
        assert x.dtype == np.float32
        assert y.dtype == np.int32
        assert x.ndim == 4
        assert len(x) == len(y)


def assert_is_mnist(dataset, arrays):
    assert_types(dataset)
    for part, x, y in (("train", dataset.train_x, dataset.train_y), ("t10k", dataset.test_x, dataset.test_y)):
        expected = standardised(arrays[f"{part}-images-idx3-ubyte"])[:, None]
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(y, arrays[f"{part}-labels-idx1-ubyte"])


def assert_is_cifar10(dataset, arrays):
    assert_types(dataset)
    mean = np.reshape([0.4914, 0.4822, 0.4465], (3, 1, 1))
    sd = np.reshape([0.2023, 0.1994, 0.2010], (3, 1, 1))
    *batches, (test_y, test_x) = arrays.values()
    train_y, train_x = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    np.testing.assert_allclose(dataset.train_x, standardised(train_x, mean, sd), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.test_x, standardised(test_x, mean, sd), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(dataset.train_y, train_y)
    np.testing.assert_array_equal(dataset.test_y, test_y)


# Reading


def test_digits():
    dataset = datasets.load("digits")
    assert_types(dataset)
    assert dataset.train_x.shape == (1437, 1, 8, 8)
    assert dataset.test_x.shape == (360, 1, 8, 8)
    for x in (dataset.train_x, dataset.test_x):
        assert np.mean(x, dtype=float) == pytest.approx(0.5, abs=1e-6)
        assert np.std(x, dtype=float) == pytest.approx(0.5, abs=1e-6)
    share = np.bincount(dataset.test_y) / (np.bincount(dataset.train_y) + np.bincount(dataset.test_y))
    np.testing.assert_allclose(share, 0.2, atol=0.01)  # stratified


def test_digits_are_split_the_same_way_every_time():
    first, second = datasets.load("digits"), datasets.load("digits", data_dir="/none/such")
    for one, other in zip(first[1:], second[1:], strict=True):
        np.testing.assert_array_equal(one, other)
    # Pinned, since results of other runs can only be compared on the same split.
    assert first.train_y[:8].tolist() == [3, 9, 1, 3, 1, 9, 4, 4]


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-idx", ".idx"])
def test_mnist_names(tmp_path, folder, suffix, separator):
    arrays = write_mnist(tmp_path / folder, lambda name: name.replace("-idx", separator) + suffix)
    assert_is_mnist(load("mnist", tmp_path), arrays)
    assert_is_mnist(load("mnist", str(tmp_path)), arrays)


def test_mnist_compressed_under_a_plain_name(tmp_path):
    arrays = write_mnist(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert_is_mnist(load("mnist", tmp_path), arrays)


@pytest.mark.parametrize("folder", ["", "cifar10", "cifar-10-batches-bin", "cifar10/cifar-10-batches-bin"])
def test_cifar10_folders(tmp_path, folder):
    arrays = write_cifar10(tmp_path / folder)
    assert_is_cifar10(load("cifar10", tmp_path), arrays)


@pytest.mark.parametrize("folder", ["", "cifar10"])
def test_cifar10_archive(tmp_path, folder):
    arrays = cifar10_arrays()
    write_archive(tmp_path / folder / "cifar-10-binary.tar.gz", cifar10_bytes(arrays))
    assert_is_cifar10(load("cifar10", tmp_path), arrays)


def test_cifar10_archive_stands_in_for_an_incomplete_folder(tmp_path):
    arrays = write_cifar10(tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"missing: data_batch_4\.bin$"):
        load("cifar10", tmp_path)
    write_archive(tmp_path / "cifar-10-binary.tar.gz", cifar10_bytes(arrays))
    assert_is_cifar10(load("cifar10", tmp_path), arrays)


# Checksums


def test_changed_content_warns_once_and_is_used(tmp_path):
    arrays = write_mnist(tmp_path)
    with pytest.warns(UserWarning, match="not the published content") as caught:
        assert_is_mnist(datasets.load("mnist", tmp_path), arrays)
    assert len(caught) == 1
    assert all(str(tmp_path / name) in str(caught[0].message) for name in arrays)


def test_changed_cifar10_warns(tmp_path):
    write_archive(tmp_path / "cifar-10-binary.tar.gz", cifar10_bytes(cifar10_arrays()))
    with pytest.warns(UserWarning, match=r"cifar-10-binary\.tar\.gz:test_batch\.bin"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_published_content_does_not_warn(tmp_path, monkeypatch, suffix):
    arrays = write_mnist(tmp_path, lambda name: name + suffix)
    md5 = {name: (hashlib.md5(idx(array)).hexdigest(), "") for name, array in arrays.items()}
    monkeypatch.setattr(published, "_MNIST", md5)
    assert_is_mnist(datasets.load("mnist", tmp_path), arrays)  # warnings are errors here


# Bad input


def test_unknown_name():
    with pytest.raises(ValueError, match="one of digits, mnist, cifar10, tinyimagenet, got 'minst'"):
        datasets.load("minst")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_no_such_folder(tmp_path, name):
    with pytest.raises(DataError, match=r"--data-dir must be an existing folder, got .*nowhere"):
        datasets.load(name, tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "wanted"), [("mnist", "t10k-labels-idx1-ubyte"), ("cifar10", "test_batch.bin")])
def test_empty_folder(tmp_path, name, wanted):
    with pytest.raises(DataError, match=f"must hold .*{wanted}.*; missing: .*{wanted}") as caught:
        datasets.load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_missing_mnist_file(tmp_path):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"mnist: .*; missing: t10k-images-idx3-ubyte$"):
        load("mnist", tmp_path)


IMAGES = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
BAD_MNIST = {
    "empty file": (IMAGES, b"", "IDX header of 16 bytes, got 0 bytes"),
    "truncated header": (LABELS, idx(np.arange(3))[:6], "IDX header of 8 bytes, got 6 bytes"),
    "labels for images": (IMAGES, idx(np.arange(20)), "magic number 0x00000803, got 0x00000801"),
    "a web page": (IMAGES, b"<!DOCTYPE html><html></html>", "magic number 0x00000803, got 0x3c21444f"),
    "truncated": (IMAGES, idx(np.zeros((3, 5, 4)))[:-9], "hold 60 bytes for its sizes 3 x 5 x 4, got 51"),
    "too long": (LABELS, idx(np.arange(3)) + b"x", "hold 3 bytes for its sizes 3, got 4"),
    "absurd sizes": (IMAGES, idx(np.zeros((1, 1, 1)))[:4] + b"\xff" * 16, "for its sizes 4294967295 x "),
    "no images": (IMAGES, idx(np.zeros((0, 5, 4))), "at least one example, got sizes 0 x 5 x 4"),
    "label out of range": (LABELS, idx(np.arange(12)), "labels must be 0 to 9, got 11"),
    "too few labels": (LABELS, idx(np.arange(9)), "one label per image, got 9 for 12 in .*" + IMAGES),
    "truncated gzip": (IMAGES, gzip.compress(idx(np.zeros((12, 5, 4))))[:-12], "readable, complete file"),
    "corrupt gzip": (IMAGES, gzip.compress(b"x" * 99)[:12] + b"\xff" * 20, "readable, complete file"),
}


@pytest.mark.parametrize("case", BAD_MNIST)
def test_bad_mnist_file(tmp_path, case):
    name, content, message = BAD_MNIST[case]
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: .*{message}"):
        datasets.load("mnist", tmp_path)  # the warning about checksums does not come on top


def test_gz_that_is_not_gzip(tmp_path):
    write_mnist(tmp_path, lambda name: name + ".gz")
    (tmp_path / (IMAGES + ".gz")).write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match=IMAGES + r"\.gz: must be a readable, complete file, got Not a gzipped"):
        datasets.load("mnist", tmp_path)


def test_unreadable_file(tmp_path, monkeypatch):
    write_mnist(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=f"{IMAGES}: must be a readable, complete file, got .*Permission denied"):
        datasets.load("mnist", tmp_path)


def test_training_and_test_images_of_different_sizes(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(mnist_arrays()["t10k-images-idx3-ubyte"][:, :3]))
    with pytest.raises(DataError, match=r"must have one shape .*, got \[1, 5, 4\] and \[1, 3, 4\]"):
        load("mnist", tmp_path)


def test_blank_images(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / IMAGES).write_bytes(idx(np.full((12, 5, 4), 7)))
    with pytest.raises(DataError, match="mnist training images: pixels must not all be equal, got 7"):
        load("mnist", tmp_path)


BAD_CIFAR10 = {
    "empty": (b"", "whole records of 3073 bytes, got 0 bytes"),
    "truncated": (bytes(2 * 3073 - 1), "whole records of 3073 bytes, got 6145 bytes"),
    "label out of range": (bytes([10]) + bytes(3072), "labels must be 0 to 9, got 10"),
}


@pytest.mark.parametrize("case", BAD_CIFAR10)
def test_bad_cifar10_file(tmp_path, case):
    content, message = BAD_CIFAR10[case]
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_3\.bin: .*{message}"):
        datasets.load("cifar10", tmp_path)


def test_bad_archives(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    contents = cifar10_bytes(cifar10_arrays())
    write_archive(path, contents)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: must be a complete \.tar\.gz archive, got "):
        datasets.load("cifar10", tmp_path)
    path.write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(DataError, match=r"must be a complete \.tar\.gz archive, got not a gzip file"):
        datasets.load("cifar10", tmp_path)
    del contents["data_batch_2.bin"]
    write_archive(path, contents)
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz: .*; missing: data_batch_2\.bin$"):
        datasets.load("cifar10", tmp_path)


# Downloads: pooch's own, with a dictionary in place of the network


@pytest.fixture
def web(tmp_path, monkeypatch):
    """What can be downloaded: url -> content."""
    pages = {}

    def get(self, url, output_file, pooch, check_only=False):
        if url not in pages:
            raise ConnectionError(f"no way to {url}")
        Path(output_file).write_bytes(pages[url])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", get)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    return pages


@pytest.fixture
def published_mnist(monkeypatch):
    """The files a mirror gives, whose checksums take the place of the real ones."""
    arrays = mnist_arrays()
    files = {name + ".gz": gzip.compress(idx(array), mtime=0) for name, array in arrays.items()}
    md5 = {name: ("", hashlib.md5(files[name + ".gz"]).hexdigest()) for name in arrays}
    monkeypatch.setattr(published, "_MNIST", md5)
    return arrays, files


@pytest.mark.parametrize("mirror", published._MNIST_MIRRORS)
def test_download_mnist_from_either_mirror(web, published_mnist, mirror):
    arrays, files = published_mnist
    web.update({mirror + name: content for name, content in files.items()})
    assert_is_mnist(datasets.load("mnist"), arrays)
    web.clear()
    assert_is_mnist(datasets.load("mnist"), arrays)  # from the cache


def test_download_goes_on_to_the_next_mirror_after_a_wrong_checksum(web, published_mnist):
    arrays, files = published_mnist
    first, second = published._MNIST_MIRRORS
    web.update({first + name: b"garbled" for name in files})
    with pytest.raises(DataError, match="does not match the known hash"):
        datasets.load("mnist")
    web.update({second + name: content for name, content in files.items()})
    assert_is_mnist(datasets.load("mnist"), arrays)


def test_download_cifar10(web, tmp_path, monkeypatch):
    arrays = cifar10_arrays()
    write_archive(tmp_path / "made.tar.gz", cifar10_bytes(arrays))
    content = (tmp_path / "made.tar.gz").read_bytes()
    web["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"] = content
    with pytest.raises(DataError, match="does not match the known hash"):
        datasets.load("cifar10")
    monkeypatch.setattr(published, "_CIFAR10_ARCHIVE_MD5", hashlib.md5(content).hexdigest())
    assert_is_cifar10(datasets.load("cifar10"), arrays)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mnist", "t10k-labels-idx1-ubyte (each with .gz or without)"),
        ("cifar10", "or cifar-10-binary.tar.gz"),
    ],
)
@pytest.mark.usefixtures("web")
def test_failed_download_says_what_to_do(name, wanted):
    with pytest.raises(DataError) as caught:
        datasets.load(name)
    message = str(caught.value)
    assert "could not be downloaded" in message
    assert "--data-dir" in message
    assert wanted in message
    assert "ConnectionError: no way to https://" in message
