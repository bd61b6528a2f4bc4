"""The one door by which a subject comes in: a model and its data in any of their forms, checked.

Models: an `nn.Module`, a scikit-learn estimator, a function of arrays, or text: `module:name` or `file.py:name` (see
`models.named` for what the name may stand for) with weights; `.pt2`; `.onnx` (also `.gz`); `.skops`; pickles with
`trust`; a Hugging Face folder.

Data: `(inputs, labels)`, a mapping, a data frame, a map-style or `datasets` data set, or text: `x.npz[:inputs,labels]`,
`x.csv[:label]`, `x.parquet[:label]`, an IDX prefix, an image folder `[:HEIGHTxWIDTH]`, a folder of `datasets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from holdfast.core.errors import InputError, TrustError, UnsupportedError
from holdfast.core.finding import Doubt
from holdfast.subject.checks import check_labels, check_model, check_shapes
from holdfast.subject.data import Data
from holdfast.subject.models.loaded import LoadedModel, Outputs, as_logits
from holdfast.subject.models.named import built, function_model, is_estimator, is_named, load_weights, named_object
from holdfast.subject.sources.examples import Examples, Layout, Range, Reading, numbered
from holdfast.subject.subject import Subject

PICKLES = (".pkl", ".pickle", ".joblib")
TORCH_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")


def load_subject(
    model: object,
    data: object,
    *,
    train: object | None = None,
    other: object | None = None,
    weights: str | Path | None = None,
    labels: str | None = None,
    layout: Layout | None = None,
    input_range: Range | None = None,
    outputs: Outputs | None = None,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    group_column: str | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> Subject:
    """A checked `Subject` from a model and data in any of the forms above.

    Parameters
    ----------
    train, other : data in the same forms; training data, and data that do not belong.
    weights : safetensors or state dict for the `nn.Module` that a factory builds.
    labels : the column or array of labels.
    layout : order of image axes, "chw" or "hwc"; found out when it can be.
    input_range : lowest and highest valid input in the units the model is fed; bytes are brought to it.
    outputs : what the model returns, "logits", "probabilities" or "labels".
    classes, class_names : number or names of classes, in order of the model's outputs.
    group_column : the column or array that names the subgroup of every example.
    device : where the model runs, as `torch.device` takes it.
    trust : allow files that can run code when read.

    Raises
    ------
    InputError, TrustError, UnsupportedError or MissingDependency with one line that says what was got, what was wanted
    and what to do.
    """
    names = None if class_names is None else tuple(class_names)
    loaded = load_model(model, weights=weights, trust=trust)
    reading = Reading(labels, group_column, layout, input_range, loaded.features, levels=loaded.levels)
    found = load_examples(data, reading)
    found_train = None if train is None else load_examples(train, reading)
    found_other = None if other is None else load_examples(other, replace(reading, labelled=False, groups=None))

    values = _class_values(names, loaded, found, found_train)
    width = classes or (None if values is None else len(values))
    test = numbered(found, values)
    if width is None and (outputs or loaded.outputs) == "labels":
        width = 1 + max(
            int(part.labels.max()) for part in (test, *([numbered(found_train, None)] if found_train else []))
        )
    ready = as_logits(loaded, outputs, width)
    ready.module.to(_device(device))
    columns, access, doubts = check_model(ready, test, width)

    named = names or _names(values, columns)
    test = replace(test, class_names=named)
    subject = Subject(
        model=ready.module,
        test=test,
        train=None if found_train is None else replace(numbered(found_train, values), class_names=named),
        other=None if found_other is None else numbered(found_other, None),
        class_names=named,
        valid=found.valid,
        access=access,
        modality=found.modality,
        name=ready.name,
        doubts=(*ready.doubts, *doubts, *_coded(loaded)),
    )
    check_shapes(subject)
    check_labels(subject)
    return subject


def _coded(loaded: LoadedModel) -> list[Doubt]:
    if not loaded.levels:
        return []
    named = ", ".join(loaded.levels)
    return [
        Doubt(
            "columns of words",
            f"The columns {named} hold words and were coded as numbers in order of the alphabet; a perturbation of "
            "such a "
            "column moves an example to a word that is near in the alphabet, not in meaning.",
            advice="Read results about noise and attacks on these columns with care.",
        )
    ]


def _class_values(
    names: tuple[str, ...] | None, loaded: LoadedModel, test: Examples, train: Examples | None
) -> Sequence[Any] | None:
    """What labels are looked up in: the user's names, the model's classes, the data's own names, or sorted strings."""
    if names is not None and len(set(names)) != len(names):
        raise InputError("two classes have the same name; class names must differ")
    if names is not None or loaded.classes is not None:
        return names or loaded.classes
    if test.names is not None or (train is not None and train.names is not None):
        own = [part.names for part in (test, train) if part is not None and part.names is not None]
        return max(own, key=len) if len({len(part) for part in own}) == 1 else tuple(sorted(set().union(*own)))
    texts = [p.labels for p in (test, train) if p is not None and p.labels is not None and p.labels.dtype.kind == "U"]
    return tuple(np.unique(np.concatenate(texts)).tolist()) if texts else None


def _names(values: Sequence[Any] | None, columns: int) -> tuple[str, ...]:
    return tuple(str(k) for k in range(columns)) if values is None else tuple(str(value) for value in values)


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"the device {text!r} is not to be had here ({str(error).splitlines()[0]})") from error
    return device


def load_model(model: object, *, weights: str | Path | None = None, trust: bool = False) -> LoadedModel:
    """A model in any of its forms, without any check that needs data."""
    name, thing = "model", model
    if isinstance(model, (str, Path)):
        loaded = _model_file(Path(model), trust)
        if loaded is not None:
            if weights is not None:
                raise InputError(f"{model} brings its own weights; leave --weights out")
            return loaded
        if not is_named(str(model)):
            raise _unknown_model(str(model))
        thing, name = named_object(str(model))
        thing = built(thing, str(model))
    if isinstance(thing, nn.Module):
        if weights is not None:
            load_weights(thing, Path(weights), trust)
        return LoadedModel(thing, name if name != "model" else type(thing).__name__)
    if weights is not None:
        raise InputError(f"weights were given for {model}, which is not an nn.Module; leave them out")
    if is_estimator(thing):
        from holdfast.subject.models.estimators import estimator_model

        return estimator_model(thing, name if name != "model" else type(thing).__name__)
    if not callable(thing):
        raise InputError(f"a model was wanted (nn.Module, estimator, function or path); got a {type(thing).__name__}")
    built_function = built(thing, getattr(thing, "__name__", "the model"))
    return load_model(built_function) if built_function is not thing else function_model(built_function, name)


def _model_file(path: Path, trust: bool) -> LoadedModel | None:
    """The model in a file or folder; None when `path` does not look like one."""
    name = path.name.lower()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"{path}: a folder without config.json; a Hugging Face model folder was wanted")
        from holdfast.subject.models.hub import folder_model

        return folder_model(path, trust)
    ending = next(
        (end for end in (".onnx", ".onnx.gz", ".pt2", ".skops", *PICKLES, *TORCH_PICKLES) if name.endswith(end)), None
    )
    if ending is None and not name.endswith(".safetensors"):
        return None
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if ending in (".onnx", ".onnx.gz"):
        return _onnx_model(path)
    if ending == ".pt2":
        from holdfast.subject.models.exported import exported_model

        return exported_model(path, trust)
    if ending == ".skops" or ending in PICKLES:
        from holdfast.subject.models.estimators import estimator_file

        return estimator_file(path, trust)
    return _whole_module(path, trust)


def _whole_module(path: Path, trust: bool) -> LoadedModel:
    """A pickled `nn.Module`, which only trust may read; a file of mere weights is told to name its factory."""
    if path.suffix == ".safetensors" or not trust:
        raise (InputError if path.suffix == ".safetensors" else TrustError)(
            f"{path}: weights need the code that builds their model: file.py:factory --weights {path.name}"
            + ("" if path.suffix == ".safetensors" else "; a whole pickled model can run code and needs --trust")
        )
    try:
        thing = torch.load(path, map_location="cpu", weights_only=False)
    except (RuntimeError, EOFError, ValueError, OSError, AttributeError, ImportError) as error:
        raise InputError(f"{path}: cannot be read as a pickled model ({str(error).splitlines()[0]})") from error
    if not isinstance(thing, nn.Module):
        raise InputError(
            f"{path}: holds a {type(thing).__name__}, not a model; name its factory: file.py:factory --weights "
            f"{path.name}"
        )
    return LoadedModel(thing, path.stem)


def _onnx_model(path: Path) -> LoadedModel:
    """An ONNX network as a torch module; through ONNX Runtime, with a doubt, when it cannot be converted."""
    from holdfast.subject.models.onnx_session import disagreement, session_model
    from holdfast.subject.onnx_graph import load_onnx

    name = path.name.removesuffix(".gz").removesuffix(".onnx")
    reason: str | None
    try:
        module = load_onnx(path)
    except UnsupportedError as error:
        reason = str(error)
    else:
        reason = disagreement(module, path)
        if reason is None:
            shape: Any = module.input_shape
            return LoadedModel(module, name, shape=shape)
    doubt = Doubt(
        "gradients lost",
        "The ONNX network was run through ONNX Runtime without gradients, because it could not be converted: "
        f"{reason}.",
        touches=("adversarial.accuracy", "certified.accuracy"),
        advice="Audit the original PyTorch model, or export it with standard operators.",
    )
    return replace(session_model(path, name), doubts=(doubt,))


def _unknown_model(text: str) -> InputError:
    return InputError(
        f"{text!r} is not a model: no such file or folder, and not of the form module:factory or file.py:factory"
    )


def load_examples(source: object, reading: Reading) -> Examples:
    """Examples from data in any of its forms."""
    if isinstance(source, (str, Path)):
        return _path_examples(str(source), reading)
    if isinstance(source, Data):
        return Examples(
            source.inputs,
            source.labels,
            source.source,
            _guess(source),
            source.class_names,
            source.feature_names,
            source.groups,
            reading.input_range,
        )
    from holdfast.subject.sources.objects import object_examples

    return object_examples(source, reading)


def _guess(data: Data) -> Any:
    return {1: "tabular", 3: "image"}.get(len(data.shape), "other")


def _path_examples(text: str, reading: Reading) -> Examples:
    path, detail = Path(text), None
    if not path.exists() and ":" in text:
        head, _, tail = text.rpartition(":")
        path, detail = Path(head), tail
    name = path.name.lower()
    if name.endswith(".npz"):
        from holdfast.subject.sources.arrays import npz_examples

        return npz_examples(path, detail, reading)
    if name.endswith(TABLES):
        from holdfast.subject.sources.tables import file_examples

        return file_examples(path, detail, reading)
    if name.endswith((*PICKLES, ".npy", ".pt", ".mat", ".h5")):
        raise InputError(f"{path}: data in this form are not read; save inputs and labels as .npz, .parquet or .csv")
    from holdfast.subject.sources.pictures import folder_examples, idx_examples, idx_pair

    pair = idx_pair(Path(text))
    if pair is not None:
        return idx_examples(pair, text, reading)
    if not path.is_dir():
        raise InputError(
            f"{text}: no such data; .npz, .csv:LABEL, .parquet:LABEL, an IDX prefix or an image folder was wanted"
        )
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from holdfast.subject.sources.objects import saved_dataset

        return saved_dataset(path, detail, reading)
    return folder_examples(path, detail, reading)
