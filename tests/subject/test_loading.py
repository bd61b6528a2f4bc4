"""Every form of model comes in as the same function, and every form of data as the same examples."""

from __future__ import annotations

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from holdfast.core.errors import TrustError
from holdfast.subject.fingerprint import fingerprint
from holdfast.subject.loading import load_examples, load_subject
from holdfast.subject.models.loaded import LogProbabilities
from holdfast.subject.sources.examples import Reading
from holdfast.subject.subject import Access

BUNCH = load_digits()
ROWS = (BUNCH.data / 16).astype(np.float32)[:200]
LABELS = BUNCH.target[:200]
PIXELS = (BUNCH.images[:200] * 15).astype(np.uint8)


def network() -> nn.Module:
    torch_weights = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(torch_weights))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer).eval()


def logits_of(subject) -> np.ndarray:
    x, _ = subject.test.take(np.arange(len(subject.test)))
    return subject.logits(subject.tensor(x)).numpy()


FACTORY = """
import torch
from torch import nn
def build(width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 10))
model = build()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(x.flatten(1))
def scores(x):
    return x.reshape(len(x), -1)[:, :10] - 0.5
def answers(x):
    return (x.reshape(len(x), -1)[:, 0] > 0).astype(int)
def make_scores():
    return scores
"""


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "nets.py"
    path.write_text(FACTORY)
    return path


class TestModels:
    expected = network()(torch.from_numpy(ROWS)).detach().numpy()

    @pytest.mark.parametrize("name", ["build", "model"])
    @pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "parallel"])
    def test_factory_with_weights(self, factory, tmp_path, name, kind):
        state = network().state_dict()
        if kind == "safetensors":
            save_file(state, tmp_path / "w.safetensors")
        elif kind == "pt":
            torch.save(state, tmp_path / "w.pt")
        elif kind == "nested":
            torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pt")
        else:
            torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "w.pt")
        weights = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pt")
        subject = load_subject(f"{factory}:{name}", (ROWS, LABELS), weights=weights)
        np.testing.assert_allclose(logits_of(subject), self.expected, rtol=1e-5, atol=1e-5)
        assert subject.access is Access.GRADIENTS
        assert subject.name == "nets"

    def test_factory_of_an_importable_module(self, factory, monkeypatch):
        monkeypatch.chdir(factory.parent)
        subject = load_subject("nets:Net", (ROWS, LABELS))
        assert logits_of(subject).shape == (200, 10)

    @pytest.mark.parametrize("name", ["scores", "make_scores"])
    def test_function_of_arrays_gives_scores(self, factory, name):
        subject = load_subject(f"{factory}:{name}", (ROWS, LABELS))
        assert subject.access is Access.SCORES
        np.testing.assert_allclose(logits_of(subject), ROWS[:, :10] - 0.5)

    def test_function_that_answers_gives_labels(self, factory):
        subject = load_subject(f"{factory}:answers", (ROWS, LABELS % 2), outputs="labels")
        assert subject.access is Access.LABELS
        assert np.array_equal(logits_of(subject).argmax(1), (ROWS[:, 0] > 0).astype(int))

    def test_callable_object(self):
        subject = load_subject(lambda x: x[:, :10], (ROWS, LABELS))
        np.testing.assert_allclose(logits_of(subject), ROWS[:, :10])

    def test_probabilities_become_logits_with_the_same_softmax(self):
        model = nn.Sequential(network(), nn.Softmax(1))
        subject = load_subject(model, (ROWS, LABELS), outputs="probabilities")
        ours = torch.from_numpy(logits_of(subject)).softmax(1)
        theirs = torch.from_numpy(self.expected).softmax(1)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        assert subject.access is Access.GRADIENTS

    @pytest.mark.parametrize("batch", ["free", "fixed"])
    def test_exported_program(self, tmp_path, batch):
        path = tmp_path / "net.pt2"
        x = torch.from_numpy(ROWS[:4])
        free = ({0: torch.export.Dim("n")},) if batch == "free" else None
        torch.export.save(torch.export.export(network(), (x,), dynamic_shapes=free), path)
        subject = load_subject(path, (ROWS[:190], LABELS[:190]))
        np.testing.assert_allclose(logits_of(subject), self.expected[:190], rtol=1e-5, atol=1e-5)
        assert subject.access is Access.GRADIENTS

    @pytest.mark.parametrize(
        "estimator",
        [
            LogisticRegression(max_iter=200),
            SVC(),
            LinearSVC(),
            RidgeClassifier(),
            DecisionTreeClassifier(random_state=0),
        ],
        ids=lambda e: type(e).__name__,
    )
    @pytest.mark.parametrize("names", ["numbers", "two", "strings", "gap"])
    def test_estimators_answer_as_their_predict(self, estimator, names):
        labels = {
            "numbers": LABELS,
            "two": LABELS % 2,
            "strings": np.array(["nought", "one", "two"])[LABELS % 3],
            "gap": np.array([7, 3, 5])[LABELS % 3],
        }[names]
        fitted = make_pipeline(StandardScaler(), estimator).fit(ROWS, labels)
        subject = load_subject(fitted, (ROWS, labels))
        answers = np.asarray(subject.class_names)[logits_of(subject).argmax(1)]
        assert np.array_equal(answers, fitted.predict(ROWS).astype(str))
        assert np.array_equal(np.asarray(subject.class_names)[subject.test.labels], labels.astype(str))
        assert subject.access is Access.SCORES
        if hasattr(fitted, "predict_proba"):
            probabilities = torch.from_numpy(logits_of(subject)).softmax(1).numpy()
            np.testing.assert_allclose(probabilities, fitted.predict_proba(ROWS), atol=1e-5)

    def test_skops_file_needs_no_trust_and_pickle_does(self, tmp_path):
        from skops import io

        fitted = LogisticRegression(max_iter=200).fit(ROWS, LABELS)
        io.dump(fitted, tmp_path / "m.skops")
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(fitted))
        safe = load_subject(tmp_path / "m.skops", (ROWS, LABELS))
        with pytest.raises(TrustError, match="--trust"):
            load_subject(tmp_path / "m.pkl", (ROWS, LABELS))
        trusted = load_subject(tmp_path / "m.pkl", (ROWS, LABELS), trust=True)
        np.testing.assert_allclose(logits_of(safe), logits_of(trusted))

    def test_onnx_network_has_gradients(self, tmp_path):
        pytest.importorskip("onnx")
        path = tmp_path / "net.onnx"
        torch.onnx.export(network(), (torch.from_numpy(ROWS[:1]),), str(path), dynamo=False)
        subject = load_subject(path, (ROWS, LABELS))
        np.testing.assert_allclose(logits_of(subject), self.expected, rtol=1e-4, atol=1e-5)
        assert subject.access is Access.GRADIENTS
        assert subject.doubts == ()

    def test_onnx_network_beyond_conversion_runs_without_gradients_and_says_so(self, tmp_path):
        pytest.importorskip("onnxruntime")

        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = nn.LSTM(8, 10, batch_first=True)

            def forward(self, x):
                return self.cell(x)[0][:, -1]

        path = tmp_path / "lstm.onnx"
        model, x = Recurrent().eval(), ROWS.reshape(-1, 8, 8)
        torch.onnx.export(model, (torch.from_numpy(x[:1]),), str(path), dynamo=False)
        subject = load_subject(path, (x[:50], LABELS[:50]))
        np.testing.assert_allclose(
            logits_of(subject), model(torch.from_numpy(x[:50])).detach().numpy(), rtol=1e-4, atol=1e-5
        )
        assert subject.access is Access.SCORES
        assert "LSTM" in subject.doubts[0].sentence
        again = pickle.loads(pickle.dumps(subject.model))
        torch.testing.assert_close(again(torch.from_numpy(x[:1])), subject.model(torch.from_numpy(x[:1])))

    def test_model_in_training_mode_is_put_in_evaluation_mode_with_a_note(self):
        model = nn.Sequential(nn.Dropout(0.5), network()).train()
        subject = load_subject(model, (ROWS, LABELS))
        assert not any(part.training for part in subject.model.modules())
        assert [doubt.name for doubt in subject.doubts] == ["evaluation mode"]
        np.testing.assert_allclose(logits_of(subject), self.expected, rtol=1e-5, atol=1e-5)

    def test_random_model_is_doubted(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.generator = network(), torch.Generator().manual_seed(0)

            def forward(self, x):
                return self.inner(x + 0.3 * torch.randn(x.shape, generator=self.generator))

        assert [doubt.name for doubt in load_subject(Noisy(), (ROWS, LABELS)).doubts] == ["randomness"]

    def test_model_without_gradients_is_audited_by_scores(self):
        class Rounded(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = network()

            def forward(self, x):
                return self.inner(x.detach())

        subject = load_subject(Rounded(), (ROWS, LABELS))
        assert subject.access is Access.SCORES
        assert subject.doubts[0].name == "gradients lost"


def write_idx(path, array: np.ndarray, packed: bool) -> None:
    heading = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    raw = heading + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if packed else raw)


def check_pixels(examples) -> None:
    assert examples.modality == "image"
    assert examples.valid == (0.0, 1.0)
    np.testing.assert_allclose(examples.inputs.take(np.arange(200))[:, 0], PIXELS / np.float32(255), rtol=1e-6)


class TestData:
    @pytest.mark.parametrize("packed", [True, False])
    def test_idx_prefix(self, tmp_path, packed):
        end = ".gz" if packed else ""
        write_idx(tmp_path / f"t10k-images-idx3-ubyte{end}", PIXELS, packed)
        write_idx(tmp_path / f"t10k-labels-idx1-ubyte{end}", LABELS, packed)
        for source in (tmp_path / "t10k", tmp_path):
            examples = load_examples(source, Reading())
            check_pixels(examples)
            assert np.array_equal(examples.labels, LABELS)

    def test_npz_with_usual_and_named_arrays(self, tmp_path):
        np.savez(tmp_path / "a.npz", x=PIXELS, y=LABELS)
        np.savez(tmp_path / "b.npz", pictures=PIXELS[..., None], kinds=LABELS, who=np.where(LABELS > 4, "a", "b"))
        check_pixels(load_examples(str(tmp_path / "a.npz"), Reading()))
        named = load_examples(f"{tmp_path}/b.npz:pictures,kinds", Reading(groups="who"))
        check_pixels(named)
        assert np.array_equal(named.labels, LABELS)
        assert set(named.groups) == {"a", "b"}

    @pytest.mark.parametrize("form", ["csv", "csv.gz", "tsv", "parquet"])
    def test_tables(self, tmp_path, form):
        import pyarrow as pa
        from pyarrow import csv, parquet

        words = np.array(["cat", "ant", "bee"])[LABELS % 3]
        table = pa.table(
            {f"f{k}": ROWS[:, k] for k in range(5)} | {"kind": words, "sex": np.where(LABELS > 4, "f", "m")}
        )
        path = tmp_path / f"t.{form}"
        if form == "parquet":
            parquet.write_table(table, path)
        else:
            options = csv.WriteOptions(delimiter="\t" if form == "tsv" else ",")
            with pa.output_stream(path, compression="gzip" if form.endswith("gz") else None) as stream:
                csv.write_csv(table, stream, options)
        model = nn.Linear(5, 3)
        subject = load_subject(model, f"{path}:kind", group_column="sex")
        assert subject.class_names == ("ant", "bee", "cat")
        assert np.array_equal(np.asarray(subject.class_names)[subject.test.labels], words)
        assert subject.test.feature_names == ("f0", "f1", "f2", "f3", "f4")
        assert subject.modality == "tabular"
        assert set(subject.test.groups) == {"f", "m"}
        np.testing.assert_allclose(subject.test.inputs.take(np.arange(200)), ROWS[:, :5], rtol=1e-5)

    def test_estimator_gets_its_own_columns_in_its_own_order(self, tmp_path):
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(ROWS[:, :4], columns=list("abcd")).assign(kind=LABELS % 2, note="text")
        fitted = LogisticRegression().fit(frame[["d", "b"]], frame["kind"])
        frame.to_csv(tmp_path / "t.csv", index=False)
        subject = load_subject(fitted, f"{tmp_path}/t.csv:kind")
        assert subject.test.feature_names == ("d", "b")
        assert np.array_equal(logits_of(subject).argmax(1), fitted.predict(frame[["d", "b"]]))

    def test_pipeline_on_a_data_frame_gets_its_words_back(self, tmp_path):
        pd = pytest.importorskip("pandas")
        from sklearn.compose import make_column_transformer
        from sklearn.preprocessing import OneHotEncoder

        colours = np.array(["red", "green", "blue", "grey"])
        frame = pd.DataFrame({"a": ROWS[:, 10], "colour": colours[LABELS % 4], "b": ROWS[:, 20], "kind": LABELS % 3})
        encoder = make_column_transformer((OneHotEncoder(), ["colour"]), (StandardScaler(), ["b", "a"]))
        fitted = make_pipeline(encoder, LogisticRegression()).fit(frame[["a", "colour", "b"]], frame["kind"])
        frame[:150].to_csv(tmp_path / "test.csv", index=False)
        frame[150:].to_parquet(tmp_path / "train.parquet")
        subject = load_subject(
            fitted, f"{tmp_path}/test.csv:kind", train=f"{tmp_path}/train.parquet:kind", group_column="colour"
        )
        expected = fitted.predict_proba(frame[["a", "colour", "b"]][:150])
        np.testing.assert_allclose(torch.from_numpy(logits_of(subject)).softmax(1).numpy(), expected, atol=1e-5)
        x, _ = subject.train.take(np.arange(50))
        answers = subject.logits(torch.from_numpy(x)).argmax(1).numpy()
        assert np.array_equal(answers, fitted.predict(frame[["a", "colour", "b"]][150:]))
        assert set(subject.test.groups) == set(colours)
        assert "colour" in subject.doubts[0].sentence

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_image_folder(self, tmp_path, mode):
        from PIL import Image

        for k in range(20):
            folder = tmp_path / ("b" if LABELS[k] % 2 else "a")
            folder.mkdir(exist_ok=True)
            Image.fromarray(PIXELS[k]).convert(mode).save(folder / f"{k:02d}.png")
        examples = load_examples(tmp_path, Reading())
        assert examples.inputs.shape == (20, 1 if mode == "L" else 3, 8, 8)
        assert examples.names == ("a", "b")
        order = [*(k for k in range(20) if LABELS[k] % 2 == 0), *(k for k in range(20) if LABELS[k] % 2 == 1)]
        np.testing.assert_allclose(
            examples.inputs.take(np.arange(20))[:, 0], PIXELS[order] / np.float32(255), rtol=1e-6
        )
        assert load_examples(f"{tmp_path}:16x12", Reading()).inputs.shape[2:] == (16, 12)

    def test_map_style_and_datasets_objects(self):
        datasets = pytest.importorskip("datasets")
        from PIL import Image
        from torch.utils.data import TensorDataset

        pictures = [Image.fromarray(part) for part in PIXELS]

        class Pictures:
            classes = tuple("abcdefghij")

            def __len__(self):
                return 200

            def __getitem__(self, k):
                return pictures[k], int(LABELS[k])

        check_pixels(load_examples(Pictures(), Reading()))
        assert load_examples(Pictures(), Reading()).names == tuple("abcdefghij")
        pair = TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(LABELS))
        np.testing.assert_array_equal(load_examples(pair, Reading()).inputs.take(np.arange(200)), ROWS)
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcdefghij"))}
        )
        hub = datasets.Dataset.from_dict({"image": pictures, "label": LABELS.tolist()}, features=features)
        examples = load_examples(hub, Reading())
        check_pixels(examples)
        assert examples.names == tuple("abcdefghij")

    def test_channels_last_bytes_in_another_range(self):
        coloured = np.repeat(PIXELS[..., None], 3, axis=-1)
        examples = load_examples((coloured, LABELS), Reading(input_range=(-1.0, 1.0)))
        taken = examples.inputs.take(np.arange(200))
        assert taken.shape == (200, 3, 8, 8)
        np.testing.assert_allclose(taken[:, 1], PIXELS / np.float32(255) * 2 - 1, atol=1e-6)
        assert examples.valid == (-1.0, 1.0)

    @pytest.mark.parametrize(
        ("images", "valid"),
        [(ROWS, (0.0, 1.0)), (PIXELS.astype(np.float32), (0.0, 255.0)), (ROWS * 4 - 2, None)],
    )
    def test_range_of_float_images(self, images, valid):
        assert load_examples((images.reshape(-1, 1, 8, 8), LABELS), Reading()).valid == valid

    def test_other_data_need_no_labels_and_no_known_classes(self, tmp_path):
        np.savez(tmp_path / "other.npz", x=ROWS[:7])
        subject = load_subject(network(), (ROWS, LABELS), other=str(tmp_path / "other.npz"))
        assert len(subject.other) == 7


class TestFingerprint:
    def subject(self, model=None, rows=ROWS, labels=LABELS, **more):
        return load_subject(model or network(), (rows, labels), **more)

    def test_same_things_have_the_same_name(self):
        assert fingerprint(self.subject()) == fingerprint(self.subject())

    def test_every_change_changes_it(self):
        rows, labels, model = ROWS.copy(), LABELS.copy(), network()
        rows[-1, -1] += 1e-3
        labels[0] = (labels[0] + 1) % 10
        with torch.no_grad():
            model[1].bias[3] += 1e-6
        marks = [
            fingerprint(subject)
            for subject in (
                self.subject(),
                self.subject(rows=rows),
                self.subject(labels=labels),
                self.subject(model),
                self.subject(nn.Sequential(network(), nn.Tanh())),
                self.subject(train=(ROWS[:5], LABELS[:5])),
                self.subject(other=(ROWS[:5], LABELS[:5])),
                self.subject(class_names=list("abcdefghij")),
                self.subject(input_range=(0.0, 1.0)),
            )
        ]
        assert len(set(marks)) == len(marks)

    def test_estimators_and_their_settings_are_told_apart(self):
        first = LogisticRegression(max_iter=200).fit(ROWS, LABELS)
        again = LogisticRegression(max_iter=200).fit(ROWS, LABELS)
        other = LogisticRegression(max_iter=200, C=0.1).fit(ROWS, LABELS)
        marks = [fingerprint(load_subject(model, (ROWS, LABELS))) for model in (first, again, other)]
        assert marks[0] == marks[1] != marks[2]


def test_log_probabilities_of_zero_are_finite():
    class Certain(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    assert torch.isfinite(LogProbabilities(Certain())(torch.zeros(3, 1))).all()
