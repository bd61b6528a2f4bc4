"""Data sets are found where they are, refused clearly where they are not, and read as their makers wrote them."""

import gzip
import json
import struct

import numpy as np
import pytest
from sklearn.datasets import load_digits

from holdfast.core.errors import InputError, MissingData
from holdfast.papers import datasets

needs_data = pytest.mark.skipif(datasets.data_folder() is None, reason="the shared data folder is not on this machine")


def test_digits_are_the_bundled_ones_in_unit_range():
    x, y = datasets.digits()
    assert x.shape == (1797, 1, 8, 8)
    assert x.dtype == np.float32
    assert x.min() == 0
    assert x.max() == 1
    np.testing.assert_array_equal(x.reshape(1797, 64) * 16, load_digits().data)
    assert datasets.digits(limit=10)[1].tolist() == y[:10].tolist()


def test_idx_pair_is_read_back(tmp_path, monkeypatch):
    pixels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 2051, 2, 28, 28) + pixels.tobytes())
    )
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(struct.pack(">2I", 2049, 2) + bytes([7, 3])))
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    x, y = datasets.fashion_mnist("test")
    np.testing.assert_allclose(x[:, 0] * 255, pixels, atol=1e-4)
    assert y.tolist() == [7, 3]


def test_misspelt_folder_is_not_taken_for_an_absent_one(monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match="HOLDFAST_DATA"):
        datasets.data_folder()


def test_absent_file_names_the_variable(monkeypatch, tmp_path):
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    with pytest.raises(MissingData, match="HOLDFAST_DATA"):
        datasets.mnist("train")


def test_unknown_table_lists_the_known(monkeypatch):
    with pytest.raises(InputError, match="wine-quality"):
        datasets.table("iris")


def test_text_columns_become_levels(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text("age,job,class\n30,cook,1\n40,baker,2\n,cook,1\n")
    table = datasets.Table("people", datasets.csv_columns(path), target="class")
    features, names = table.features()
    assert names == ("age", "job=baker", "job=cook")
    np.testing.assert_array_equal(features[:, 1:], [[0, 1], [1, 0], [0, 1]])
    assert np.isnan(features[2, 0])
    labels, classes = table.labels()
    assert labels.tolist() == [0, 1, 0]
    assert classes == ("1", "2")


@needs_data
def test_shared_images_have_the_published_counts():
    x, y = datasets.fashion_mnist("test")
    assert x.shape == (10_000, 1, 28, 28)
    assert np.bincount(y).tolist() == [1000] * 10
    assert datasets.cifar10("test")[0].shape == (1000, 3, 32, 32)
    assert datasets.cifar10("test", jpeg=True, limit=2500)[0].shape == (2500, 3, 32, 32)
    assert datasets.notmnist()[0].shape == (5000, 1, 28, 28)
    assert datasets.omniglot(5)[0].shape == (5, 1, 28, 28)
    assert datasets.traffic_signs()[0].shape == (1307, 3, 32, 32)


@needs_data
@pytest.mark.parametrize("name", datasets.tables())
def test_every_shared_table_reads(name):
    table = datasets.table(name)
    features, names = table.features()
    assert features.shape == (len(table), len(names))
    assert table.labels()[0].shape == (len(table),)


def test_word_problems_are_read_without_the_calculators_marks(tmp_path, monkeypatch):
    folder = tmp_path / "code-and-math-text"
    folder.mkdir()
    record = {"question": "How many?", "answer": "2*3 = <<2*3=6>>6 clips.\n6-1 = <<6-1=5>>5 stay.\n#### 5"}
    (folder / "gsm8k_test.jsonl.gz").write_bytes(gzip.compress((json.dumps(record) + "\n").encode() * 3))
    monkeypatch.setenv(datasets.VARIABLE, str(tmp_path))
    problems = datasets.gsm8k("test", limit=2)
    assert len(problems) == 2
    assert problems[0].steps == ("2*3 = 6 clips.", "6-1 = 5 stay.")
    assert problems[0].result == "5"
    with pytest.raises(MissingData):
        datasets.human_eval()


def test_the_description_of_a_task_leaves_out_its_examples():
    prompt = 'def helper(x):\n    """No."""\n\ndef twice(x):\n    """ Give\n    2x.\n    >>> twice(2)\n    4\n    """\n'
    assert datasets.CodeTask("t", prompt, "", "", "twice").description == "Give 2x."


@needs_data
def test_texts_have_their_published_sizes():
    assert len(datasets.gsm8k("train")) == 7473
    assert len(datasets.gsm8k("test")) == 1319
    assert all(problem.steps and problem.result for problem in datasets.gsm8k("train"))
    tasks = datasets.human_eval()
    assert len(tasks) == 164
    assert all(task.description for task in tasks)
