"""Random detection problems, with crowds, ties, duplicates, empty images and boxes of all sizes."""

import numpy as np


def problem(seed, images=6, classes=3, ties=True):
    generator = np.random.default_rng(seed)
    detections, truth = [], []
    for _ in range(images):
        m = int(generator.integers(0, 7))
        corner = generator.uniform(0, 200, (m, 2))
        boxes = np.concatenate([corner, corner + np.exp(generator.uniform(1.5, 5.3, (m, 2)))], axis=1)
        labels = generator.integers(1, classes + 1, m)
        crowd = generator.random(m) < 0.15
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * generator.uniform(0.4, 1, m)
        truth.append({"boxes": boxes, "labels": labels, "iscrowd": crowd, "area": area})
        copies = boxes[generator.integers(0, m, 2 * m)] if m else np.empty((0, 4))
        jitter = generator.normal(0, 0.05, (len(copies), 4)) * np.tile(copies[:, 2:] - copies[:, :2], 2)
        stray = generator.uniform(0, 200, (3, 2))
        found = np.concatenate([copies + jitter, np.concatenate([stray, stray + generator.uniform(5, 90, (3, 2))], 1)])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        scores = generator.random(len(found))
        detections.append(
            {
                "boxes": found,
                "labels": generator.integers(1, classes + 1, len(found)),
                "scores": scores.round(1) if ties else scores,
            }
        )
    return detections, truth
