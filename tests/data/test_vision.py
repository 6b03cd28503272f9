"""torchvision's data sets, read from small files in their true formats."""

import gzip
import hashlib
import pickle
import struct
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from odenet.data import cifar10, crop_and_flip, fashion_mnist, mnist
from odenet.errors import InputError, RunError

TRAIN, TEST = 60, 20


def idx(array: np.ndarray) -> bytes:
    """The IDX format: magic number (0, 0, type 8 = uint8, rank), big-endian sizes, then the bytes."""
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder):
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    written = {}
    for part, n in (("train", TRAIN), ("t10k", TEST)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
        written[part] = images, labels
    return written


def write_cifar(root, monkeypatch):
    """Batches as in cifar-10-python.tar.gz; torchvision is told the checksums of these smaller files."""
    from torchvision.datasets import CIFAR10

    generator = np.random.default_rng(0)
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    content = {}
    for name in names:
        pixels = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        content[name] = {"data": pixels, "labels": [i % 10 for i in range(20)], "batch_label": name}
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    checksum = {}
    for name, value in {**content, "batches.meta": {"label_names": labels}}.items():
        (folder / name).write_bytes(raw := pickle.dumps(value, protocol=2))
        checksum[name] = hashlib.md5(raw).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[n, checksum[n]] for n in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], checksum[names[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksum["batches.meta"]})
    return content


@pytest.mark.parametrize(("make", "folder"), [(mnist, "MNIST/raw"), (fashion_mnist, "FashionMNIST/raw")])
def test_mnist_files(make, folder, tmp_path):
    pytest.importorskip("torchvision")
    written = write_mnist(tmp_path / folder)
    data = make(root=tmp_path, download=False)
    assert data.shape == (1, 28, 28)
    assert data.kind == "image"
    assert len(data.classes) == 10
    assert data.train_x.dtype == torch.uint8
    assert np.array_equal(data.train_x[:, 0].numpy(), written["train"][0])
    assert np.array_equal(data.test_x[:, 0].numpy(), written["t10k"][0])
    assert np.array_equal(data.test_y.numpy(), written["t10k"][1])
    expected = (written["train"][0][:5] / 255.0 - data.mean[0]) / data.std[0]
    assert_close(data.prepare(data.train_x[:5])[:, 0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)
    few = make(root=tmp_path, download=False, limit=7)
    assert torch.equal(few.train_x, data.train_x[:7])
    assert len(few.test_y) == 7


def test_compressed_mnist_files_that_are_there_are_not_downloaded(tmp_path, monkeypatch):
    vision = pytest.importorskip("torchvision").datasets
    folder = tmp_path / "MNIST" / "raw"
    written = write_mnist(folder)
    resources = []
    for file in sorted(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(packed := gzip.compress(file.read_bytes()))
        resources.append((f"{file.name}.gz", hashlib.md5(packed).hexdigest()))
        file.unlink()
    monkeypatch.setattr(vision.MNIST, "resources", resources)
    monkeypatch.setattr(vision.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    data = mnist(root=tmp_path)
    assert np.array_equal(data.train_x[:, 0].numpy(), written["train"][0])


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    write_mnist(tmp_path / "MNIST" / "raw")
    monkeypatch.setenv("ODENET_DATA", str(tmp_path))
    assert len(mnist(download=False).train_x) == TRAIN


def test_cifar_files(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    content = write_cifar(tmp_path, monkeypatch)
    data = cifar10(root=tmp_path, download=False)
    assert data.train_x.shape == (100, 3, 32, 32)
    # a row holds the red, the green and the blue plane one after the other
    assert np.array_equal(data.train_x[20:40].numpy().reshape(20, -1), content["data_batch_2"]["data"])
    assert np.array_equal(data.test_x.numpy().reshape(20, -1), content["test_batch"]["data"])
    assert data.test_y.tolist() == content["test_batch"]["labels"]
    assert data.augmentation is crop_and_flip
    assert cifar10(root=tmp_path, download=False, augmentation=None).augmentation is None
    blue = data.prepare(torch.full((2, 3, 32, 32), 255, dtype=torch.uint8))[0, 2, 0, 0]
    assert blue.item() == pytest.approx((1 - 0.4465) / 0.2616)


def test_missing_files(tmp_path):
    pytest.importorskip("torchvision")
    for make, folder in ((mnist, "MNIST"), (cifar10, "cifar-10")):
        with pytest.raises(RunError, match=f"cannot load .* from {tmp_path}/{folder}.*pass download=True"):
            make(root=tmp_path, download=False)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "labels"])
def test_damaged_mnist_files(tmp_path, damage):
    pytest.importorskip("torchvision")
    folder = tmp_path / "MNIST" / "raw"
    write_mnist(folder)
    images = folder / "train-images-idx3-ubyte"
    content = {"truncated": images.read_bytes()[:1000], "text": b"<html>not found</html>", "empty": b""}
    if damage == "labels":
        (folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(TRAIN - 1, dtype=np.uint8)))
    else:
        images.write_bytes(content[damage])
    with pytest.raises(RunError, match=f"cannot load mnist from {folder} .*delet") as caught:
        mnist(root=tmp_path, download=False)
    assert "\n" not in str(caught.value)


def test_damaged_cifar_file(tmp_path, monkeypatch):
    pytest.importorskip("torchvision")
    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"x")
    with pytest.raises(RunError, match=r"cannot load cifar10 from .*cifar-10-batches-py"):
        cifar10(root=tmp_path, download=False)


def test_a_failed_download_is_one_sentence(tmp_path, monkeypatch):
    vision = pytest.importorskip("torchvision").datasets
    monkeypatch.setattr(vision.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(RunError, match=f"cannot load mnist from {tmp_path}/MNIST/raw .*check the network") as caught:
        mnist(root=tmp_path)
    assert "\n" not in str(caught.value)


def test_without_torchvision_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r'cifar10 needs torchvision; .*pip install "odenet\[vision\]"'):
        cifar10(root=tmp_path)


def test_limit_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="limit must be a positive integer, got 0"):
        mnist(root=tmp_path, limit=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_and_flip_takes_a_window_of_the_padded_image(dtype):
    height, width, padding = 6, 5, 2
    batch = torch.arange(1, 1 + 50 * 2 * height * width).view(50, 2, height, width).to(dtype)
    out = crop_and_flip(batch, torch.Generator().manual_seed(0), padding=padding)
    assert out.shape == batch.shape
    assert out.dtype == dtype
    seen = set()
    for image, result in zip(batch, out, strict=True):
        padded = torch.zeros(2, height + 2 * padding, width + 2 * padding, dtype=dtype)
        padded[:, padding:-padding, padding:-padding] = image
        windows = {
            (top, left, flip): window.flip(2) if flip else window
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            for flip in (False, True)
            for window in [padded[:, top : top + height, left : left + width]]
        }
        found = [key for key, window in windows.items() if torch.equal(window, result)]
        assert len(found) == 1
        seen.update(found)
    for axis, choices in ((0, 5), (1, 5), (2, 2)):
        assert len({key[axis] for key in seen}) == choices


def test_crop_and_flip_is_reproducible_from_its_generator():
    batch = torch.randn(16, 3, 8, 8)
    first, again = (crop_and_flip(batch, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, crop_and_flip(batch, torch.Generator().manual_seed(8)))
