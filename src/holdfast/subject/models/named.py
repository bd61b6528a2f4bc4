"""Models named in Python: `module:name` or `path/file.py:name`, and weights for what such a factory builds.

What the name stands for is decided by this rule:

1. an `nn.Module` or an estimator (it has `fit` and `predict`) is the model;
2. a class is called without arguments, and so is a function that can be (all its parameters have defaults): it is a
   *factory*, and rules 1 and 3 decide about what it returns;
3. a function with exactly one parameter to fill is the model itself: it maps a float32 array (batch, *shape) to scores
   (batch, classes) or to class indices (batch,).

Naming a module is asking to run it; nothing else runs code without `trust`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from holdfast.core.errors import HoldfastError, InputError, TrustError
from holdfast.subject.models.loaded import ArrayModel, LoadedModel
from holdfast.subject.subject import Access

#: Keys under which training scripts put the state dict inside a checkpoint.
NESTED = ("state_dict", "model_state_dict", "model", "ema_state_dict")
#: Prefixes that wrappers leave on parameter names.
PREFIXES = ("module.", "_orig_mod.")


def is_named(text: str) -> bool:
    """Whether `text` has the form module:name or file.py:name."""
    module, colon, name = text.rpartition(":")
    return bool(colon and module and all(part.isidentifier() for part in name.split(".")))


def named_object(text: str) -> tuple[Any, str]:
    """What `module:name` stands for, and a short name.  Raises InputError when the module or the name is not there."""
    place, _, name = text.rpartition(":")
    module = _file_module(Path(place)) if place.endswith(".py") else _installed_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            offered = [key for key in vars(module) if not key.startswith("_")]
            raise InputError(f"{place} has no {name!r}; it has {', '.join(offered[:12]) or 'no public names'}")
        found = getattr(found, part)
    short = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return found, short if name in ("build", "model", "make", "create", "factory") else name


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: there is no such Python file")
    name = f"holdfast_subject_{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        _running(str(path), lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except HoldfastError:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(path.resolve().parent))
    _send_by_value(module)
    return module


def _send_by_value(module: ModuleType) -> None:
    """Other processes cannot import a file by its made-up name: let its classes travel with the model."""
    try:
        import cloudpickle
    except ImportError:  # joblib before 1.6 brings its own
        from joblib.externals import cloudpickle

    cloudpickle.register_pickle_by_value(module)


def _installed_module(name: str) -> ModuleType:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module: ModuleType = _running(name, lambda: importlib.import_module(name))
        return module
    finally:
        sys.path.remove(here)


def _running(what: str, action: Callable[[], Any]) -> Any:
    """The user's own code, run; whatever it raises becomes one clear line."""
    try:
        return action()
    except HoldfastError:
        raise
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise InputError(f"{what}: running it raised {type(error).__name__}: {first}") from error


def is_estimator(thing: object) -> bool:
    return (
        not inspect.isclass(thing)
        and not isinstance(thing, nn.Module)
        and hasattr(thing, "predict")
        and hasattr(thing, "fit")
    )


def built(thing: Any, text: str) -> Any:
    """The model behind a named object, by the rule above: a module, an estimator, or a function of one array."""
    if isinstance(thing, nn.Module) or is_estimator(thing):
        return thing
    if not callable(thing):
        raise InputError(f"{text} is a {type(thing).__name__}; a model, a factory of one or a function was wanted")
    if inspect.isclass(thing) or _open_parameters(thing, text) == 0:
        made = _running(text, thing)
        if isinstance(made, nn.Module) or is_estimator(made):
            return made
        if not callable(made) or _open_parameters(made, text) != 1:
            raise InputError(
                f"{text} built a {type(made).__name__}; an nn.Module, an estimator or a function was wanted"
            )
        return made
    if _open_parameters(thing, text) != 1:
        raise InputError(
            f"{text} needs {_open_parameters(thing, text)} arguments; a factory takes none, a model of arrays "
            "takes one batch"
        )
    return thing


def _open_parameters(function: Any, text: str) -> int:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise InputError(f"{text}: its parameters cannot be seen ({error}); wrap it in a Python function") from error
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is inspect.Parameter.empty and p.kind not in kinds for p in parameters)


def function_model(function: Callable[[np.ndarray], Any], name: str) -> LoadedModel:
    """A function of one array as a model that gives scores."""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # a built-in, or typed at a prompt
        source = repr(type(function)) + getattr(function, "__qualname__", "")
    digest = hashlib.blake2b(source.encode(), digest_size=16).hexdigest()
    return LoadedModel(ArrayModel(function, digest), name, Access.SCORES)


def load_weights(module: nn.Module, path: Path, trust: bool) -> None:
    """Put the tensors of a safetensors file or state dict into `module`.

    Raises InputError naming the parameters that are missing, left over or of another shape; TrustError when the file
    holds more than tensors and may not be unpickled.
    """
    state = _plain(safetensors(path) if path.suffix == ".safetensors" else _state_dict(path, trust), path)
    wanted = module.state_dict()
    if not set(state) & set(wanted):
        for prefix in PREFIXES:
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    missing, extra = [k for k in wanted if k not in state], [k for k in state if k not in wanted]
    if missing or extra:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"holds {_some(extra)}, which the model lacks"] * bool(
            extra
        )
        raise InputError(f"{path}: these weights are for another model: the file {' and '.join(parts)}")
    for key, tensor in wanted.items():
        if tensor.shape != state[key].shape:
            raise InputError(
                f"{path}: {key} has shape {tuple(state[key].shape)}; the model's has {tuple(tensor.shape)}"
            )
    module.load_state_dict(state)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); save or fetch it again") from error


def _state_dict(path: Path, trust: bool) -> Any:
    try:
        with path.open("rb") as file:
            if file.read(2) not in (b"PK", b"\x80\x02"):
                raise InputError(f"{path}: not a file that torch.save wrote; a state dict or safetensors was wanted")
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if trust:
            raise InputError(f"{path}: damaged ({error})") from error
        raise TrustError(
            f"{path}: holds more than tensors, and reading it could run code; save the state dict with "
            "safetensors, or say "
            "--trust if you trust where it came from"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (RuntimeError, EOFError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a whole PyTorch file ({str(error).splitlines()[0]})") from error


def _plain(state: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(state, nn.Module):
        state = state.state_dict()
    if isinstance(state, Mapping):
        nested = next((state[key] for key in NESTED if isinstance(state.get(key), Mapping)), None)
        state = state if nested is None else nested
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: holds a {type(state).__name__}; a state dict (names to tensors) was wanted")
    return dict(state)
