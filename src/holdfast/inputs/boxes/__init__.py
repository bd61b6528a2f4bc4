"""Detectors: overlap of boxes, matching, COCO's average precision, files of boxes, what explains their errors.

    report = average_precision(detections, truth)        # one mapping an image, as torchvision's detectors give them
    report.ap, report.ap50, report.small

Where there is no object to find (of a class, of a size, or none at all) no precision is defined: the report holds NaN
there, its means leave it out, and `ap` is NaN when nothing is left; COCO's own code writes -1.  False positives on such
images count for the classes that have objects elsewhere.

Boxes are (left, top, right, bottom) in pixels; see `frames` for the form of detections and truth.
"""

from holdfast.inputs.boxes.causes import FalsePositives, coverage, false_positives_by_cause, reduction
from holdfast.inputs.boxes.effective import COCO_O_SLOPE, BaselineLine, effective_robustness, fit_baseline
from holdfast.inputs.boxes.frames import iou
from holdfast.inputs.boxes.matching import COCO_AREAS, COCO_THRESHOLDS, BoxMatches, match
from holdfast.inputs.boxes.precision import (
    APReport,
    ap_estimate,
    average_precision,
    percentile_interval,
    report,
    resampled_ap,
)
from holdfast.inputs.boxes.readers import CocoSet, read_coco, read_coco_results, read_yolo

__all__ = [
    "COCO_AREAS",
    "COCO_O_SLOPE",
    "COCO_THRESHOLDS",
    "APReport",
    "BaselineLine",
    "BoxMatches",
    "CocoSet",
    "FalsePositives",
    "ap_estimate",
    "average_precision",
    "coverage",
    "effective_robustness",
    "false_positives_by_cause",
    "fit_baseline",
    "iou",
    "match",
    "percentile_interval",
    "read_coco",
    "read_coco_results",
    "read_yolo",
    "reduction",
    "report",
    "resampled_ap",
]
