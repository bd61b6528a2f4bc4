"""Hugging Face model folders, from local files only and without remote code.

Image classifiers take plain pixels in [0, 1]: the mean and spread of `preprocessor_config.json` become the first layer.
Sequence classifiers take rows of token ids, as floats or integers; padding is masked, and there are no gradients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from holdfast.core.errors import InputError, MissingDependency
from holdfast.subject.models.loaded import LoadedModel, Normalise, OnlyLogits
from holdfast.subject.subject import Access


class TokenClassifier(nn.Module):
    """A sequence classifier on token ids (batch, tokens); ids equal to `padding` are masked."""

    def __init__(self, model: nn.Module, padding: int) -> None:
        super().__init__()
        self.model = model
        self.padding = padding

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "batch tokens"]) -> Float[Tensor, "batch classes"]:
        tokens = x.round().long()
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(tokens != self.padding).long()).logits
        return logits


def folder_model(folder: Path, trust: bool) -> LoadedModel:
    """The classifier in a folder written by `save_pretrained`; weights must be safetensors unless trusted."""
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency.of("transformers", "hub", "reading a Hugging Face folder") from error
    config = _json(folder / "config.json")
    kinds = [name for name in config.get("architectures") or [] if name.endswith("Classification")]
    auto: Any
    if any(name.endswith("ForImageClassification") for name in kinds):
        auto = transformers.AutoModelForImageClassification
    elif any(name.endswith("ForSequenceClassification") for name in kinds):
        auto = transformers.AutoModelForSequenceClassification
    else:
        raise InputError(
            f"{folder}: its architecture is {config.get('architectures')}; an image or sequence classifier was wanted"
        )
    try:
        model = auto.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=not trust or None
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{folder}: transformers cannot load it ({str(error).strip().splitlines()[0][:200]})"
        ) from error
    names = tuple(model.config.id2label[k] for k in range(model.config.num_labels))
    if auto is transformers.AutoModelForSequenceClassification:
        padding = model.config.pad_token_id
        return LoadedModel(
            TokenClassifier(model, 0 if padding is None else padding), folder.name, Access.SCORES, "logits", _own(names)
        )
    return LoadedModel(_with_pixels(OnlyLogits(model), folder), folder.name, outputs="logits", classes=_own(names))


def _own(names: tuple[str, ...]) -> tuple[object, ...] | None:
    """Class names that somebody gave; the library's placeholders LABEL_0, LABEL_1, ... are none."""
    return None if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names


def _with_pixels(model: nn.Module, folder: Path) -> nn.Module:
    place = folder / "preprocessor_config.json"
    if not place.is_file():
        return model
    settings = _json(place)
    if not settings.get("do_normalize", "image_mean" in settings):
        return model
    return nn.Sequential(Normalise(settings["image_mean"], settings["image_std"]), model)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: a JSON object was wanted")
    return found
