"""Hugging Face folders come in from local files, with pixels in [0, 1] and their own class names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from holdfast.subject.loading import load_subject
from holdfast.subject.subject import Access

transformers = pytest.importorskip("transformers")


def test_image_classifier_takes_plain_pixels(tmp_path):
    names = {0: "cat", 1: "dog", 2: "eel"}
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=4,
        num_channels=3, id2label=names, label2id={name: k for k, name in names.items()}
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    words = np.array(["dog", "eel", "cat"])[np.arange(9) % 3]
    subject = load_subject(tmp_path, (pixels, words))
    assert subject.class_names == ("cat", "dog", "eel")
    assert subject.test.labels.tolist() == [1, 2, 0] * 3
    assert subject.access is Access.GRADIENTS
    x, _ = subject.test.take(np.arange(9))
    with torch.no_grad():
        expected = model(pixel_values=(torch.from_numpy(x) - 0.5) / 0.25).logits
    torch.testing.assert_close(subject.logits(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-5)


def test_sequence_classifier_masks_padding(tmp_path):
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=3,
        pad_token_id=0
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(0).integers(1, 20, (6, 7))
    padded = np.concatenate([tokens, np.zeros((6, 3), np.int64)], axis=1)
    subject = load_subject(tmp_path, (padded, np.arange(6) % 3))
    assert subject.access is Access.SCORES
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits
    x, _ = subject.test.take(np.arange(6))
    torch.testing.assert_close(subject.logits(torch.from_numpy(x)), expected, rtol=1e-4, atol=1e-4)
