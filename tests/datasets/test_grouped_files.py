"""Waterbirds and CelebA, from small folders written here in the published layouts."""

import numpy as np
import pytest
from PIL import Image

from cetsim import datasets
from cetsim.datasets import DataError

WATERBIRDS = "waterbird_complete95_forest2water2"
HEAD = "img_id,img_filename,y,split,place,place_filename"


def picture(path, shade, size=(20, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path, quality=95)


def waterbirds_folder(root, rows=((0, 0, 0), (1, 0, 1), (1, 1, 0), (0, 2, 1))):
    folder, lines = root / WATERBIRDS, [HEAD]
    for i, (y, split, place) in enumerate(rows):
        name = f"{i:03}.Bird/Bird_{i}.jpg"
        picture(folder / name, 50 * i)
        lines.append(f'{i},{name},{y},{split},{place},"/o/ocean, deep/{i}.jpg"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


def celeba_folder(root, attributes=("Blond_Hair", "Male", "Young")):
    folder = root / "celeba"
    values = ((1, -1, 1), (-1, 1, 1), (-1, -1, -1))
    files = [f"{i:06}.jpg" for i in range(1, 4)]
    for i, file in enumerate(files):
        picture(folder / "img_align_celeba" / file, 80 * i, (178, 218))
    rows = [f"{file} " + " ".join(f"{v:2}" for v in row) for file, row in zip(files, values, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["3", " ".join(attributes), *rows]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{file} {i}\n" for i, file in enumerate(files)))
    return folder


@pytest.mark.parametrize("inside", [True, False])
def test_waterbirds(tmp_path, inside):
    folder = waterbirds_folder(tmp_path)
    found = datasets.waterbirds(folder if inside else tmp_path)
    assert found.labels.tolist() == [0, 1, 1, 0]
    assert found.attributes.tolist() == [0, 1, 0, 1]
    assert found.split.tolist() == [0, 0, 1, 2]
    train = found.load("train", size=8)
    assert (train.x.shape, train.x.dtype) == ((2, 3, 8, 8), np.float32)
    np.testing.assert_allclose(train.x[1, :, 4, 4], np.array([50, 0, 205]) / 255, atol=0.03)
    assert train.labels.tolist() == [0, 1]
    assert len(found.load("train", 8, limit=1).x) == 1
    assert found.load("test", 8).attributes.tolist() == [1]


def test_celeba(tmp_path):
    folder = celeba_folder(tmp_path)
    found = datasets.celeba(tmp_path)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.attributes.tolist() == [0, 1, 0]
    assert found.split.tolist() == [0, 1, 2]
    assert datasets.celeba(folder, "Young", "Blond_Hair").labels.tolist() == [1, 1, 0]
    x = found.load("validation", size=10).x
    np.testing.assert_allclose(x[0, :, 5, 5], np.array([80, 0, 175]) / 255, atol=0.03)


def test_wrong_folders_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: must be a folder with metadata\.csv"):
        datasets.waterbirds(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"missing: metadata\.csv"):
        datasets.waterbirds(tmp_path)
    with pytest.raises(DataError, match=r"missing: list_attr_celeba\.txt, list_eval_partition\.txt"):
        datasets.celeba(tmp_path)
    folder = celeba_folder(tmp_path)
    (folder / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"missing: list_eval_partition\.txt"):
        datasets.celeba(folder)


def test_damaged_lists_and_images_are_refused_by_name(tmp_path):
    folder = waterbirds_folder(tmp_path)
    table = (folder / "metadata.csv").read_text()
    found = datasets.waterbirds(folder)
    for wrong, why in (
        (table.replace(",place,", ",where,"), "missing: place"),
        (table.replace("0.jpg,0,0,0", "0.jpg,2,0,0", 1), "y must be one of 0, 1, got '2' of image 1"),
        (HEAD + "\n", "must have rows"),
    ):
        (folder / "metadata.csv").write_text(wrong)
        with pytest.raises(DataError, match=why):
            datasets.waterbirds(folder)
    found.paths[3].write_bytes(found.paths[3].read_bytes()[:40])
    with pytest.raises(DataError, match=r"Bird_3\.jpg: must be a complete image"):
        found.load("test", 8)
    found.paths[3].unlink()
    with pytest.raises(DataError, match=r"Bird_3\.jpg: must be a readable"):
        found.load("test", 8)
    with pytest.raises(ValueError, match="one of 'train', 'validation', 'test'"):
        found.load("val")


def test_lists_of_celeba_that_do_not_go_together(tmp_path):
    folder = celeba_folder(tmp_path)
    names = folder / "list_attr_celeba.txt"
    text = names.read_text()
    for wrong, why in (
        (text.replace("3\n", "4\n", 1), "as its first line says, 4, got 3"),
        (text.replace("000002.jpg -1", "000002.jpg", 1), "line 4: must have a file and 3 attributes"),
        (text.replace("000002.jpg -1", "000002.jpg  0", 1), "Blond_Hair must be one of -1, 1, got '0'"),
    ):
        names.write_text(wrong)
        with pytest.raises(DataError, match=why):
            datasets.celeba(folder)
    names.write_text(text)
    with pytest.raises(DataError, match="must name the attribute 'Beard'"):
        datasets.celeba(folder, "Beard")
    (folder / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match=r"missing: 000002\.jpg"):
        datasets.celeba(folder)
