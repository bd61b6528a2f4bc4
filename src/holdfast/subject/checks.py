"""What is checked where a subject comes in, so that everything behind the door may trust it.

`check_model` runs the model on a few examples and compares what comes out with what was declared; `units_doubt` asks
whether the model was trained on inputs of another scale: accuracy on a few hundred examples as given is compared,
pair by pair, with accuracy on the same examples in other common units by McNemar's exact test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import binom
from torch import Tensor, nn

from holdfast.core.errors import HoldfastError, InputError
from holdfast.core.finding import Doubt
from holdfast.core.seeds import numpy_generator
from holdfast.subject.data import Data
from holdfast.subject.models.loaded import LoadedModel
from holdfast.subject.modes import training_parts
from holdfast.subject.subject import Access, Subject

FEW = 16
UNITS_SAMPLE = 512
UNITS_LEVEL = 1e-4


def check_model(loaded: LoadedModel, test: Data, classes: int | None) -> tuple[int, Access, tuple[Doubt, ...]]:
    """Run a model on the first few examples: its number of classes, the access it truly gives, and doubts about it.

    `loaded.module` is put in evaluation mode and its parameters are made float32.

    Raises
    ------
    InputError when weights or outputs are not finite, the model refuses inputs of this shape, its outputs are not one
    row
    of scores an example, they are probabilities where logits were declared (or the reverse), or their number is not
    that of the classes.
    """
    module = loaded.module
    doubts = [*_prepare(module)]
    x = torch.from_numpy(test.inputs.take(np.arange(min(FEW, len(test))))).to(_device_of(module))
    with torch.no_grad():
        logits = _checked_outputs(_run(module, x, loaded), len(x), loaded)
    columns = logits.shape[1]
    if classes is not None and columns != classes:
        raise InputError(
            f"the model gives {columns} scores an example, but there are {classes} classes; bring the model for "
            "these classes, "
            "or name its classes in order (--class-names)"
        )
    access, lost = _true_access(module, x, loaded.access)
    return columns, access, (*doubts, *lost, *_stability_doubts(module, x, logits))


def _prepare(module: nn.Module) -> list[Doubt]:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(
                f"{bad} of {tensor.numel()} weights in {name} are NaN or infinite; the file or training is damaged"
            )
    doubts = []
    training = training_parts(module)
    if training:
        shown = ", ".join(training[:3]) + (", ..." if len(training) > 3 else "")
        verb = "was" if len(training) == 1 else "were"
        doubts.append(
            Doubt(
                "evaluation mode",
                f"The model came in training mode; {shown} {verb} put in evaluation mode for this audit.",
            )
        )
    module.eval()
    other = {t.dtype for t in module.parameters() if t.is_floating_point() and t.dtype != torch.float32}
    if other:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in other)
        module.float()
        doubts.append(Doubt("precision", f"The model's weights are {kinds}; the audit ran it in float32."))
    return doubts


def _device_of(module: nn.Module) -> torch.device:
    first = next((t for t in [*module.parameters(), *module.buffers()]), None)
    return torch.device("cpu") if first is None else first.device


def _run(module: nn.Module, x: Tensor, loaded: LoadedModel) -> Any:
    if loaded.shape is not None and tuple(x.shape[1:]) != loaded.shape:
        raise InputError(f"the model takes examples of shape {loaded.shape}; the data have {tuple(x.shape[1:])}")
    try:
        return module(x)
    except HoldfastError:
        raise
    except Exception as error:
        wanted = _wanted(module)
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the model fails on examples of shape {tuple(x.shape[1:])}{wanted}: {type(error).__name__}: {first[:160]}"
        ) from error


def _wanted(module: nn.Module) -> str:
    """What the first layer with weights asks for, in words."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            return f" (its first layer wants {part.in_features} features)"
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return f" (its first layer wants {part.in_channels} channels first)"
    return ""


def _checked_outputs(outputs: Any, batch: int, loaded: LoadedModel) -> Tensor:
    if not isinstance(outputs, Tensor):
        raise InputError(
            f"the model returns a {type(outputs).__name__}; one tensor of logits (batch, classes) was wanted"
        )
    if outputs.ndim == 1 and not outputs.is_floating_point():
        raise InputError("the model returns one class index an example; say so: --outputs labels")
    if outputs.ndim != 2 or outputs.shape[0] != batch or outputs.shape[1] < 2:
        raise InputError(
            f"the model returns shape {tuple(outputs.shape)} for {batch} examples; ({batch}, classes) with two "
            "classes or more "
            "was wanted (one score for two classes: return both, [0, score])"
        )
    if not torch.isfinite(outputs).all():
        raise InputError(
            "the model gives NaN or infinite outputs on the first examples; check its weights and input range"
        )
    if loaded.outputs == "probabilities":
        sums = outputs.exp().sum(1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            raise InputError(
                f"the model was said to return probabilities, but a row sums to {float(sums[0]):g}; leave "
                "--outputs out "
                "for logits"
            )
    elif loaded.outputs is None and _look_like_probabilities(outputs):
        raise InputError(
            "the model returns probabilities (every row lies in [0, 1] and sums to 1) where logits were expected; "
            "say so: --outputs probabilities, or return what goes into the softmax"
        )
    return outputs


def _look_like_probabilities(outputs: Tensor) -> bool:
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    return inside and bool((outputs.double().sum(1) - 1).abs().max() <= 1e-5)


def _true_access(module: nn.Module, x: Tensor, declared: Access) -> tuple[Access, list[Doubt]]:
    """The declared access, or scores alone when no gradient comes back to the inputs."""
    if declared is not Access.GRADIENTS:
        return declared, []
    with torch.enable_grad():
        probe = x[:2].clone().requires_grad_()
        try:
            (gradient,) = torch.autograd.grad(module(probe).sum(), probe)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
        else:
            if torch.isfinite(gradient).all():
                return declared, []
            why = "they are NaN or infinite"
    doubt = Doubt(
        "gradients lost",
        f"No gradients could be had from the model ({why}), so it was audited by its scores alone.",
        touches=("adversarial.accuracy", "certified.accuracy"),
        advice="Keep tensors in torch from input to output (no .detach(), .numpy() or rounding).",
    )
    return Access.SCORES, [doubt]


@torch.no_grad()
def _stability_doubts(module: nn.Module, x: Tensor, logits: Tensor) -> list[Doubt]:
    """Doubts about a model that answers differently when asked again, or in other company."""
    scale = float(logits.abs().max()) + 1e-6
    again = module(x)
    if float((again - logits).abs().max()) > 1e-4 * scale:
        return [
            Doubt(
                "randomness",
                "The model gives different outputs when it is asked twice about the same inputs, so gradients and "
                "attacks "
                "see noise, and an accuracy under attack is too favourable.",
                advice="Audit the expectation: average the outputs over many draws inside the model.",
            )
        ]
    alone = module(x[:1])
    if float((alone - logits[:1]).abs().max()) > 1e-3 * scale:
        return [
            Doubt(
                "batch dependence",
                "The model's answer to an example depends on which other examples are in the batch, so numbers of "
                "this audit "
                "depend on how it was cut into batches.",
                advice="Put normalisation layers in evaluation mode with their learnt statistics.",
            )
        ]
    return []


def check_shapes(subject: Subject) -> None:
    """Raises InputError when training or other data have examples of another shape than the test data."""
    for role, data in (("training", subject.train), ("other", subject.other)):
        if data is not None and data.shape != subject.test.shape:
            raise InputError(
                f"{role} examples ({data.source}) have shape {data.shape}; those of the test data "
                f"({subject.test.source}) have "
                f"{subject.test.shape}"
            )


def check_labels(subject: Subject) -> None:
    """Raises InputError when a label is not one of the model's classes."""
    for data in (subject.test, subject.train):
        if data is not None and (data.labels >= subject.classes).any():
            at = int(np.argmax(data.labels >= subject.classes))
            raise InputError(
                f"{data.source}: label {data.labels[at]} of example {at} is outside the model's {subject.classes} "
                "classes "
                f"(0 to {subject.classes - 1})"
            )


def units_doubt(subject: Subject, examples: int = UNITS_SAMPLE) -> Doubt | None:
    """A doubt when inputs lie outside the valid range, or when the model is clearly better on them in other units.

    Looks at `examples` test examples drawn with a fixed seed.  Other units are tried for images and tables only.
    """
    size = min(examples, len(subject.test))
    index = numpy_generator(0, "units").choice(len(subject.test), size, replace=False)
    inputs, labels = subject.test.take(index)
    return _range_doubt(subject, inputs) or _scale_doubt(subject, inputs, labels)


def _range_doubt(subject: Subject, inputs: np.ndarray) -> Doubt | None:
    if subject.valid is None:
        return None
    x = subject.tensor(inputs)
    low, high = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in subject.valid)
    slack = 1e-5 * float((high - low).abs().max())
    outside = ((x < low - slack) | (x > high + slack)).flatten(1).any(1)
    if not outside.any():
        return None
    return Doubt(
        "inputs outside the valid range",
        f"{int(outside.sum())} of {len(outside)} test inputs lie outside the valid range {_ends(low, high)} "
        f"(they run from {inputs.min():g} to {inputs.max():g}), so perturbed inputs were clipped to values the data do "
        "not keep to.",
        advice="Give the true range (--input-range LOW,HIGH) or bring the data into it.",
    )


def _ends(low: Tensor, high: Tensor) -> str:
    return f"[{float(low.min()):g}, {float(high.max()):g}]"


def _scale_doubt(subject: Subject, inputs: np.ndarray, labels: np.ndarray) -> Doubt | None:
    as_given = _right(subject, inputs, labels)
    best: tuple[float, str, float] | None = None
    candidates = other_units(inputs, subject.modality)
    for words, changed in candidates.items():
        right = _right(subject, changed, labels)
        better, worse = int((right & ~as_given).sum()), int((as_given & ~right).sum())
        chance = float(binom.sf(better - 1, better + worse, 0.5)) if better else 1.0
        if chance < UNITS_LEVEL / len(candidates) and (best is None or right.mean() > best[2]):
            best = (chance, words, float(right.mean()))
    if best is None:
        return None
    _, words, accuracy = best
    return Doubt(
        "input units",
        f"The model is right on {as_given.mean():.0%} of {len(labels)} test examples as given, but on {accuracy:.0%} "
        f"when inputs are {words}: it was probably trained on inputs in those units.",
        advice="Put the conversion inside the model as its first layer, or bring the data in the model's own units; "
        "every number of this audit is about the inputs as given.",
    )


def other_units(
    inputs: Float[np.ndarray, "examples ..."], modality: str
) -> Mapping[str, Float[np.ndarray, "examples ..."]]:
    """The same inputs in other common units, by the words that complete "when inputs are ..."."""
    axes = (0, 2, 3) if modality == "image" and inputs.ndim == 4 else (0,)
    mean, spread = inputs.mean(axes, keepdims=True), inputs.std(axes, keepdims=True)
    standard = (inputs - mean) / np.where(spread > 0, spread, 1)
    if modality == "image":
        return {
            "multiplied by 255": inputs * np.float32(255),
            "divided by 255": inputs / np.float32(255),
            "mapped from [0, 1] to [-1, 1]": inputs * np.float32(2) - np.float32(1),
            "standardised channel by channel": standard,
        }
    return {"standardised feature by feature": standard} if modality == "tabular" else {}


def _right(subject: Subject, inputs: np.ndarray, labels: np.ndarray) -> Bool[np.ndarray, " examples"]:
    logits = subject.logits(subject.tensor(inputs))
    return np.asarray(logits.argmax(1).cpu().numpy() == labels)
