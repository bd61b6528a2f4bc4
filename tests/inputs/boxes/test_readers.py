"""Files of boxes: COCO JSON and YOLO text say the same, the corner that was meant as a centre is mended."""

import json

import numpy as np
import pytest

from holdfast.core.errors import InputError
from holdfast.inputs.boxes import average_precision, read_coco, read_coco_results, read_yolo

NAMES = ("person", "vehicle")


def coco(tmp_path, **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 4, "name": "vehicle"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 4, "bbox": [10, 20, 30, 40], "area": 900, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
    } | changes
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    return file


def test_coco_keeps_order_empty_images_areas_and_crowds(tmp_path):
    made = read_coco(coco(tmp_path))
    assert made.ids == (7, 3)
    assert made.files == ("a.png", "b.png")
    assert made.names == {1: "person", 4: "vehicle"}
    assert made.truth[0]["boxes"].tolist() == [[10, 20, 40, 60], [0, 0, 4, 4]]
    assert made.truth[0]["labels"].tolist() == [4, 1]
    assert made.truth[0]["area"].tolist() == [900, 16]
    assert made.truth[0]["iscrowd"].tolist() == [False, True]
    assert made.truth[1]["boxes"].shape == (0, 4)


def test_results_join_their_images_and_score(tmp_path):
    made = read_coco(coco(tmp_path))
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 7, "category_id": 4, "bbox": [10, 20, 30, 40], "score": 0.5}]))
    found = read_coco_results(results, made)
    assert [len(image["scores"]) for image in found] == [1, 0]
    assert average_precision(found, made.truth).ap == pytest.approx(1)


def test_center_shift_adds_half_the_size(tmp_path):
    plain, mended = (read_coco(coco(tmp_path), center_shift=shift).truth[0]["boxes"] for shift in (False, True))
    np.testing.assert_allclose(mended - plain, [[15, 20, 15, 20], [2, 2, 2, 2]])


def test_yolo_reads_centres_in_shares_of_the_image(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.4\n0 0.25 0.25 0.1 0.1\n")
    made = read_yolo([tmp_path / "a.txt", tmp_path / "none.txt"], [(50, 100), (50, 100)], NAMES)
    np.testing.assert_allclose(made[0]["boxes"], [[40, 15, 60, 35], [20, 10, 30, 15]])
    assert made[0]["labels"].tolist() == [1, 0]
    assert made[1]["boxes"].shape == (0, 4)
    assert "scores" not in made[0]
    corner = read_yolo([tmp_path / "a.txt"], [(50, 100)], NAMES, center_shift=True)
    np.testing.assert_allclose(corner[0]["boxes"][0], [50, 25, 70, 45])


def test_a_sixth_column_is_the_score(tmp_path):
    (tmp_path / "a.txt").write_text("1 0.5 0.5 0.2 0.4 0.75\n")
    assert read_yolo([tmp_path / "a.txt"], [(50, 100)], NAMES)[0]["scores"].tolist() == [0.75]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2 0.5 0.5 0.2 0.4", "list has 2: person, vehicle"),
        ("0.5 0.5 0.5 0.2 0.4", "list has 2"),
        ("1 0.5 0.5 -0.2 0.4", "no box"),
        ("1 0.5 0.5 0.2", "every line must be"),
        ("1 0.5 0.5 0.2 high", "other than numbers"),
    ],
)
def test_bad_lines_are_told(tmp_path, line, message):
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(InputError, match=message):
        read_yolo([tmp_path / "a.txt"], [(50, 100)], NAMES)


def test_bad_files_are_told(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_coco(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="needs 'images'"):
        read_coco(tmp_path / "list.json")
    annotation = {"id": 1, "image_id": 7, "category_id": 4, "bbox": [10, 20, 30, 40]}
    with pytest.raises(InputError, match="category 9"):
        read_coco(coco(tmp_path, annotations=[annotation | {"category_id": 9}]))
    with pytest.raises(InputError, match="image 8"):
        read_coco(coco(tmp_path, annotations=[annotation | {"image_id": 8}]))
    with pytest.raises(InputError, match="no box"):
        read_coco(coco(tmp_path, annotations=[annotation | {"bbox": [10, 20, -3, 4]}]))
    (tmp_path / "results.json").write_text(json.dumps([annotation]))
    truth = read_coco(coco(tmp_path))
    with pytest.raises(InputError, match="no score"):
        read_coco_results(tmp_path / "results.json", truth)
    with pytest.raises(InputError, match="as many sizes"):
        read_yolo([tmp_path / "a.txt"], [], NAMES)
