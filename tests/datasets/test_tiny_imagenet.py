"""TinyImageNet, from small folders of JPEG files written here in the published layout."""

import io
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from cetsim import datasets
from cetsim.datasets import DataError, published, tiny_imagenet

CLASSES = ("n02", "n01", "n03")  # not in alphabetical order, as in the published wnids.txt
PER_CLASS = 2
TEST = ("n03", "n02", "n01", "n03")


def jpeg(seed, mode="RGB", size=(64, 64)):
    """Bytes of a JPEG file with a smooth random pattern, `size` (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).convert(mode).resize(size).save(file, "JPEG")
    return file.getvalue()


def pixels(content):
    """What the file shows, `[3, height, width]`."""
    return np.moveaxis(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), -1, 0)


def write(root, classes=CLASSES, per_class=PER_CLASS, test=TEST, boxes=True):
    """Writes a small TinyImageNet and returns its files' content by path."""
    files = {"wnids.txt": "\n".join(CLASSES) + "\n", "words.txt": "n01\tgoldfish, Carassius auratus\n"}
    for wnid in classes:
        names = [f"{wnid}_{i}.JPEG" for i in range(per_class)]
        for i, name in enumerate(names):
            files[f"train/{wnid}/images/{name}"] = jpeg(100 * CLASSES.index(wnid) + i)
        if boxes:
            files[f"train/{wnid}/{wnid}_boxes.txt"] = "".join(f"{name}\t0\t10\t63\t58\n" for name in names)
    for i in range(len(test)):
        files[f"val/images/val_{i}.JPEG"] = jpeg(1000 + i)
    annotations = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(test)]
    files["val/val_annotations.txt"] = "".join(annotations)
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content.encode() if isinstance(content, str) else content)
    return files


def load(folder):
    """`datasets.load`, without the warning that small folders are not the published one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not the published")
        return datasets.load("tinyimagenet", folder)


def standardised(images):
    x = np.stack([pixels(content) for content in images]).astype(float)
    mean = np.reshape([0.4802, 0.4481, 0.3975], (3, 1, 1))
    sd = np.reshape([0.2302, 0.2265, 0.2262], (3, 1, 1))
    return sd * (x - x.mean()) / x.std() + mean


def assert_is(dataset, files):
    """Images and labels are those of `files`: classes in alphabetical order, test images in the annotations'."""
    train = sorted(path for path in files if path.startswith("train/") and path.endswith(".JPEG"))
    rows = [line.split("\t") for line in files["val/val_annotations.txt"].splitlines()]
    test = [f"val/images/{name}" for name, *_ in rows]
    assert dataset.name == "tinyimagenet"
    assert (dataset.train_x.dtype, dataset.train_y.dtype) == (np.float32, np.int32)
    assert (dataset.test_x.dtype, dataset.test_y.dtype) == (np.float32, np.int32)
    np.testing.assert_allclose(dataset.train_x, standardised([files[path] for path in train]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dataset.test_x, standardised([files[path] for path in test]), rtol=1e-5, atol=1e-6)
    assert dataset.train_y.tolist() == [CLASSES.index(path.split("/")[1]) for path in train]
    assert dataset.test_y.tolist() == [CLASSES.index(wnid) for _, wnid, *_ in rows]


# Reading


@pytest.mark.parametrize("folder", ["", "tiny-imagenet-200", "tinyimagenet", "tinyimagenet/tiny-imagenet-200"])
def test_folders(tmp_path, folder):
    files = write(tmp_path / folder)
    dataset = load(tmp_path)
    assert_is(dataset, files)
    assert dataset.train_x.shape == (6, 3, 64, 64)
    assert dataset.train_y.tolist() == [1, 1, 0, 0, 2, 2]


def test_fewer_classes_keep_their_numbers(tmp_path):
    files = write(tmp_path, classes=("n01", "n03"), per_class=1, test=("n03",))
    dataset = load(tmp_path)
    assert_is(dataset, files)
    assert dataset.train_y.tolist() == [1, 2]
    assert dataset.test_y.tolist() == [2]


def test_boxes_and_words_are_not_needed(tmp_path):
    files = write(tmp_path, boxes=False)
    (tmp_path / "words.txt").unlink()
    assert_is(load(tmp_path), files)


def test_other_files_are_passed_over(tmp_path):
    files = write(tmp_path)
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    for path in (".DS_Store", "train/.DS_Store", "train/n01/images/Thumbs.db", "train/n01/images/._n01_0.JPEG"):
        (tmp_path / path).write_bytes(b"\0")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert_is(load(tmp_path), files)


def test_line_ends_of_other_systems(tmp_path):
    files = write(tmp_path)
    for path in ("wnids.txt", "val/val_annotations.txt", "train/n01/n01_boxes.txt"):
        (tmp_path / path).write_bytes(files[path].replace("\n", "\r\n").encode() + b"\r\n")
    assert_is(load(tmp_path), files)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    files = write(tmp_path)
    for path in ("train/n01/images/n01_1.JPEG", "val/images/val_2.JPEG"):
        files[path] = jpeg(7, mode)
        (tmp_path / path).write_bytes(files[path])
    dataset = load(tmp_path)
    assert_is(dataset, files)
    if mode == "L":  # equal channels, but for each channel's own sd and mean
        grey = (dataset.train_x[1] - np.reshape(published._TINY_IMAGENET_MEAN, (3, 1, 1))) / np.reshape(
            published._TINY_IMAGENET_SD, (3, 1, 1)
        )
        np.testing.assert_allclose(grey, grey[:1].repeat(3, axis=0), atol=1e-5)


def test_numbers_that_are_not_the_published_ones_warn(tmp_path, monkeypatch):
    files = write(tmp_path)
    with pytest.warns(UserWarning, match=r"got 3 classes, 6 training images and 4 test images") as caught:
        assert_is(datasets.load("tinyimagenet", tmp_path), files)
    assert len(caught) == 1
    monkeypatch.setattr(tiny_imagenet, "PUBLISHED", (3, 6, 4))
    assert_is(datasets.load("tinyimagenet", tmp_path), files)  # warnings are errors here


# Bad input


def test_there_is_no_download():
    with pytest.raises(DataError, match=r"--data-dir must be a folder that holds .* unpacked from http.*\.zip"):
        datasets.load("tinyimagenet")


def test_no_such_folder(tmp_path):
    with pytest.raises(DataError, match=r"--data-dir must be an existing folder, got .*nowhere"):
        datasets.load("tinyimagenet", tmp_path / "nowhere")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"must hold tiny-imagenet-200/ .*; missing: wnids\.txt$") as caught:
        datasets.load("tinyimagenet", tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("folder", ["train", "val", "train/n01/images", "val/images"])
def test_missing_folder(tmp_path, folder):
    write(tmp_path)
    shutil.rmtree(tmp_path / folder)
    with pytest.raises(DataError, match=f"{folder}.*: must be .*, got .*No such file or directory"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("wnids.txt", r"missing: wnids\.txt"),
        ("val/val_annotations.txt", "must be a readable, complete file, got .*No such file"),
        ("val/images/val_1.JPEG", "must be a readable, complete file, got .*No such file"),
        ("train/n02/images/n02_1.JPEG", r"must be there, since n02_boxes\.txt names it, got no such file"),
    ],
)
def test_missing_file(tmp_path, path, message):
    write(tmp_path)
    (tmp_path / path).unlink()
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path)
    assert path in str(caught.value) or path == "wnids.txt"


GOOD = jpeg(100)
BAD_IMAGES = {
    "empty": (b"", "must be a complete JPEG image, got not a JPEG image"),
    "a web page": (b"<!DOCTYPE html><html></html>", "must be a complete JPEG image, got not a JPEG image"),
    "header only": (GOOD[:40], "must be a complete JPEG image, got "),
    "truncated": (GOOD[: len(GOOD) // 2 + 200], "must be a complete JPEG image, got .*truncated"),
    "last bytes cut off": (GOOD[:-20], "must be a complete JPEG image, got .*truncated"),
    "zeros after the header": (GOOD[:200] + bytes(len(GOOD) - 200), "must be a complete JPEG image, got "),
    "corrupt tables": (GOOD[:20] + b"\xff" * 300 + GOOD[320:], "must be a complete JPEG image, got "),
    "another size": (jpeg(0, size=(48, 64)), "must be 64 x 64 pixels, got 48 x 64"),
    "too large": (jpeg(0, size=(500, 375)), "must be 64 x 64 pixels, got 500 x 375"),
}


@pytest.mark.parametrize("path", ["train/n01/images/n01_1.JPEG", "val/images/val_3.JPEG"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_image(tmp_path, case, path):
    content, message = BAD_IMAGES[case]
    write(tmp_path)
    (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match=f"{path}: {message}"):
        datasets.load("tinyimagenet", tmp_path)  # the warning about numbers does not come on top


def test_another_image_format_under_the_name(tmp_path):
    write(tmp_path)
    path = tmp_path / "val" / "images" / "val_0.JPEG"
    Image.new("RGB", (64, 64)).save(path, "PNG")
    with pytest.raises(DataError, match=r"val_0\.JPEG: must be a complete JPEG image, got not a JPEG image"):
        load(tmp_path)


BAD_LISTS = {
    "no classes": ("wnids.txt", "\n", "must name at least one class and each once, got 0 in 0"),
    "a class twice": ("wnids.txt", "n01\nn02\nn03\nn01\n", "must name at least one class and each once, got 3 in 4"),
    "two columns": ("wnids.txt", "n01\tgoldfish\n", "line 1: must have 1 fields between tabs, got 2"),
    "unknown class": ("val/val_annotations.txt", "\nval_0.JPEG\tn09\t0\t0\t9\t9\n", "line 2: .* wnids.txt, got 'n09'"),
    "cut line": ("val/val_annotations.txt", "val_0.JPEG\tn01\t0", "line 1: must have 6 fields between tabs, got 3"),
    "an image twice": (
        "val/val_annotations.txt",
        "val_0.JPEG\tn01\t0\t0\t9\t9\n" * 2,
        r"line 2: must name each image once, got 'val_0\.JPEG' again",
    ),
    "bytes": ("val/val_annotations.txt", "\udcff\0\n", "line 1: must have 6 fields between tabs, got 1"),
    "boxes with a cut line": ("train/n01/n01_boxes.txt", "n01_0.JPEG\t0\t9", "line 1: must have 5 fields .*, got 3"),
}


@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_list(tmp_path, case):
    path, text, message = BAD_LISTS[case]
    write(tmp_path)
    (tmp_path / path).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"{path}.*{message}"):
        load(tmp_path)


def test_training_images_of_an_unknown_class(tmp_path):
    write(tmp_path)
    (tmp_path / "wnids.txt").write_text("n01\nn03\n")
    with pytest.raises(DataError, match=r"train.n02: must be the folder of a class in wnids\.txt, got 'n02'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("part", "emptied"), [("train", {"classes": ()}), ("train", {"per_class": 0}), ("val", {"test": ()})]
)
def test_no_images(tmp_path, part, emptied):
    write(tmp_path, **emptied)
    for folder in (tmp_path / "train", *(tmp_path / "train" / wnid / "images" for wnid in CLASSES)):
        if folder.parent.exists():
            folder.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=f"{part}: must hold at least one image, got none"):
        load(tmp_path)


def test_blank_images(tmp_path):
    write(tmp_path, test=("n01",))
    Image.new("RGB", (64, 64), (7, 7, 7)).save(tmp_path / "val" / "images" / "val_0.JPEG", "JPEG")
    with pytest.raises(DataError, match="tinyimagenet test images: pixels must not all be equal, got 7"):
        load(tmp_path)
