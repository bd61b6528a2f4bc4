"""A small anchor-free detector for checks: a heat map of centres a class, and the four distances to the box's sides.

Images (batch, channels, side, side) become maps of a quarter (or half) of the side.  The heat map is trained by the
focal loss of CenterNet (Zhou et al., 2019) against Gaussians at the objects' centres, the distances by -log IoU at the
cells around a centre (FCOS; Tian et al., 2019).  Peaks of the heat map that no neighbour exceeds become detections, in
the form of torchvision's detectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from holdfast.core.seeds import torch_generator
from holdfast.papers.bench_models.networks import initialise


class CentreDetector(nn.Module):
    """Six convolutions with batch normalisation (`stride` 2 or 4, two dilated), then a linear read-out."""

    def __init__(self, classes: int, channels: int = 3, width: int = 32, stride: int = 4) -> None:
        super().__init__()
        self.classes, self.stride = classes, stride
        shapes = (
            (channels, 16, 5, 2, 1),
            (16, width, 3, stride // 2, 1),
            *((width, width, 3, 1, far) for far in (1, 2, 4, 1)),
        )
        self.body = nn.Sequential(*(layer for shape in shapes for layer in _convolution(*shape)))
        self.read = nn.utils.skip_init(nn.Conv2d, width, classes + 4, 1)

    def forward(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Float[Tensor, "batch classes rows columns"], Float[Tensor, "batch 4 rows columns"]]:
        """Logits of the heat map, and distances in pixels from the cells' centres to left, top, right and bottom."""
        read = self.read(self.body((images - 0.5).contiguous(memory_format=torch.channels_last)))
        return read[:, : self.classes], (read[:, self.classes :] + 2.0).clamp(max=6).exp()


def _convolution(entering: int, leaving: int, size: int, stride: int, dilation: int) -> tuple[nn.Module, ...]:
    padding = size // 2 * dilation
    convolution = nn.utils.skip_init(
        nn.Conv2d, entering, leaving, size, stride=stride, padding=padding, dilation=dilation, bias=False
    )
    return convolution, nn.BatchNorm2d(leaving), nn.ReLU()


class CellTargets:
    """What the maps should be for given boxes: the heat of every class, boxes, and marks of the cells that count."""

    def __init__(self, truth: Sequence[Mapping[str, np.ndarray]], classes: int, side: int, stride: int = 4) -> None:
        cells = side // stride
        counts = [len(image["boxes"]) for image in truth]
        image = torch.repeat_interleave(torch.arange(len(truth)), torch.tensor(counts))
        boxes = torch.from_numpy(np.concatenate([image["boxes"].reshape(-1, 4) for image in truth])).float()
        labels = torch.from_numpy(np.concatenate([image["labels"] for image in truth])).long()
        centre = torch.arange(cells) * stride + stride / 2
        across = centre[None] - (boxes[:, :1] + boxes[:, 2:3]) / 2
        down = centre[None] - (boxes[:, 1:2] + boxes[:, 3:]) / 2
        spread = ((boxes[:, 2:] - boxes[:, :2]) / 8).clamp(min=stride / 2)
        bell = torch.exp(-0.5 * (across / spread[:, :1]) ** 2)[:, None, :]
        bell = bell * torch.exp(-0.5 * (down / spread[:, 1:]) ** 2)[:, :, None]
        near = down.abs()[:, :, None] + across.abs()[:, None, :]
        peak = near.flatten(1).argmin(1)  # the cell nearest the centre is a full positive
        bell.flatten(1)[torch.arange(len(boxes)), peak] = 1.0
        flat = (image * classes + labels)[:, None].expand(-1, cells * cells)
        self.heat = torch.zeros(len(truth) * classes, cells * cells).scatter_reduce_(0, flat, bell.flatten(1), "amax")
        self.heat = self.heat.view(len(truth), classes, cells, cells)
        self.boxes = torch.zeros(len(truth), 4, cells, cells)
        self.counts = torch.zeros(len(truth), cells, cells, dtype=torch.bool)
        reach = 1.5 * stride
        inside = (across.abs() <= reach)[:, None, :] & (down.abs() <= reach)[:, :, None]
        inside.flatten(1)[torch.arange(len(boxes)), peak] = True
        owner, row, column = inside.nonzero(as_tuple=True)
        cell = (image[owner] * cells + row) * cells + column
        first = np.lexsort((near[owner, row, column].numpy(), cell.numpy()))  # the nearest object gets the cell
        first = first[np.unique(cell.numpy()[first], return_index=True)[1]]
        owner, row, column = owner[first], row[first], column[first]
        self.boxes[image[owner], :, row, column] = boxes[owner]
        self.counts[image[owner], row, column] = True


def detection_loss(
    logits: Float[Tensor, "batch classes rows columns"],
    distances: Float[Tensor, "batch 4 rows columns"],
    heat: Float[Tensor, "batch classes rows columns"],
    boxes: Float[Tensor, "batch 4 rows columns"],
    counts: Tensor,
    stride: int = 4,
) -> Tensor:
    """Focal loss of the heat map over the number of objects, plus the mean of -log IoU over the cells that count."""
    chance = logits.sigmoid()
    positive = heat == 1
    miss = F.logsigmoid(logits) * (1 - chance) ** 2
    alarm = F.logsigmoid(-logits) * chance**2 * (1 - heat) ** 4
    focal = -torch.where(positive, miss, alarm).sum() / positive.sum().clamp(min=1)
    made = _corners(distances, stride).permute(0, 2, 3, 1)[counts]
    wanted = boxes.permute(0, 2, 3, 1)[counts]
    low, high = torch.maximum(made[:, :2], wanted[:, :2]), torch.minimum(made[:, 2:], wanted[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    union = (made[:, 2:] - made[:, :2]).prod(1) + (wanted[:, 2:] - wanted[:, :2]).prod(1) - shared
    return focal - ((shared + 0.1) / (union + 0.1)).log().sum() / counts.sum().clamp(min=1)


def _corners(distances: Float[Tensor, "batch 4 rows columns"], stride: int) -> Float[Tensor, "batch 4 rows columns"]:
    rows, columns = distances.shape[2:]
    y = (torch.arange(rows) * stride + stride / 2)[:, None]
    x = (torch.arange(columns) * stride + stride / 2)[None]
    left, top, right, bottom = distances.unbind(1)
    return torch.stack([x - left, y - top, x + right, y + bottom], 1)


def fit_detector(
    model: CentreDetector,
    images: Float[np.ndarray, "n channels side side"],
    truth: Sequence[Mapping[str, np.ndarray]],
    *path: str | int,
    seed: int,
    steps: int,
    batch: int = 32,
    peak: float = 1e-2,
    snapshots: Sequence[int] = (),
) -> list[CentreDetector]:
    """Adam under a one-cycle step; the detector after each of `snapshots` steps and at the end, in evaluation mode."""
    import copy

    initialise(model, torch_generator(seed, *path, "weights"))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.fill_(1.0)
        model.read.bias[: model.classes] = -4.0
        model.read.weight[model.classes :] *= 0.1
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has it, its stubs do not
    targets = CellTargets(truth, model.classes, images.shape[-1], model.stride)
    x = torch.from_numpy(images)
    order = torch_generator(seed, *path, "order")
    optimizer = torch.optim.Adam(model.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)
    kept = []
    rows = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(rows) < batch:
            rows = torch.cat([rows, torch.randperm(len(x), generator=order)])
        part, rows = rows[:batch], rows[batch:]
        optimizer.zero_grad()
        logits, distances = model(x[part])
        detection_loss(
            logits, distances, targets.heat[part], targets.boxes[part], targets.counts[part], model.stride
        ).backward()
        optimizer.step()
        schedule.step()
        if step in snapshots:
            kept.append(copy.deepcopy(model).eval())
    return [*kept, model.eval()]


@torch.no_grad()
def detect(
    model: CentreDetector, images: Float[np.ndarray, "n channels side side"], most: int = 20, lowest: float = 0.01
) -> list[dict[str, np.ndarray]]:
    """The `most` highest peaks above `lowest` of every image, their boxes cut at the image's edge."""
    found: list[dict[str, np.ndarray]] = []
    for part in torch.from_numpy(images).split(256):
        logits, distances = model(part)
        chance = logits.sigmoid()
        peaks = torch.where(F.max_pool2d(chance, 3, 1, 1) == chance, chance, 0.0)
        scores, place = peaks.flatten(1).topk(most)
        cells = logits.shape[2] * logits.shape[3]
        labels, cell = place // cells, place % cells
        boxes = _corners(distances, model.stride).flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)).permute(0, 2, 1)
        boxes = boxes.clamp(0, images.shape[-1])
        good = (scores > lowest) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])
        found += [
            {"boxes": b[g].double().numpy(), "labels": k[g].numpy(), "scores": s[g].double().numpy()}
            for b, k, s, g in zip(boxes, labels, scores, good, strict=True)
        ]
    return found
