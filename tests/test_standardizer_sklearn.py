"""Standardizer in scikit-learn's hands, and beside its StandardScaler."""

import subprocess
import sys

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of

import nbbn
from nbbn.standardizer import _estimator

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks
from sklearn.utils.validation import check_is_fitted

has_tags = hasattr(estimator_checks, "estimator_checks_generator")  # from 1.6 on
SENTENCE = "the same error as everywhere in nbbn, in its own words"
REFUSED = "integers, objects and complex numbers are refused, with a TypeError that names the dtype"
EXPECTED = {
    "check_n_features_in_after_fitting": SENTENCE,
    "check_estimators_empty_data_messages": SENTENCE,
    "check_estimators_dtypes": REFUSED,
    "check_dtype_object": REFUSED,
    "check_complex_data": REFUSED,
    "check_dataframe_column_names_consistency": SENTENCE + ", and no warning",
}


@pytest.mark.skipif(not has_tags, reason="scikit-learn before 1.6 tells no checks by name")
@pytest.mark.filterwarnings("ignore:Estimator Standardizer does not inherit:UserWarning")
def test_scikit_learns_own_checks():
    results = estimator_checks.check_estimator(
        nbbn.Standardizer(), expected_failed_checks=EXPECTED, on_fail=None, on_skip=None
    )
    found = {status: [] for status in ("passed", "failed", "xfail", "skipped")}
    for result in results:
        found[result["status"]].append((result["check_name"], result["exception"]))
    assert found["failed"] == []
    assert len(found["passed"]) > 30
    failed = {name for name, _ in found["xfail"]}
    assert failed >= {name for name in EXPECTED if "dataframe" not in name}, "some pass by now"


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_attributes_and_values_are_those_of_the_standard_scaler(with_mean, with_std, dtype):
    x = cases.values((50, 4), dtype)
    x[:, 1] = 5.0
    options = {"with_mean": with_mean, "with_std": with_std}
    ours, theirs = nbbn.Standardizer(**options), StandardScaler(**options)
    for chunk in (x[:20], x[20:]):
        ours.partial_fit(chunk), theirs.partial_fit(chunk)
    near = {"rtol": 1e-4 if dtype is np.float32 else 1e-12, "atol": 1e-6}
    for name in ("mean_", "var_", "scale_"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one is None) == (other is None), name
        if one is not None:
            np.testing.assert_allclose(one, other, **near)
    assert ours.n_samples_seen_ == theirs.n_samples_seen_
    for method in ("transform", "inverse_transform", "fit_transform"):
        one, other = getattr(ours, method)(x), getattr(theirs, method)(x)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, **near)
    np.testing.assert_array_equal(ours.get_feature_names_out(), theirs.get_feature_names_out())


def test_float32_with_a_mean_of_a_million_deviations():
    """StandardScaler rounds the mean to float32, and is off by up to 0.03 standard deviations."""
    x = cases.values((5000, 4), loc=1e6, scale=1.0)
    exact = reference.training(x, eps=0.0).y
    bound = 8 * eps_of(np.float32) * np.abs(exact)
    assert_within(nbbn.Standardizer().fit_transform(x), exact, bound)
    assert np.abs(StandardScaler().fit_transform(x) - exact).max() > 1e-3


def test_it_is_fitted_and_its_error_is_scikit_learns():
    scaler = nbbn.Standardizer()
    with pytest.raises(NotFittedError):
        check_is_fitted(scaler)
    with pytest.raises(NotFittedError, match=r"^Standardizer: expected fit or partial_fit first"):
        scaler.transform(np.zeros((3, 2)))
    check_is_fitted(scaler.fit(np.zeros((3, 2))))


def test_without_scikit_learn_nothing_of_it_is_loaded():
    code = """
import sys, numpy as np, nbbn
scaler = nbbn.Standardizer()
try:
    scaler.transform(np.zeros((3, 2)))
except ValueError as error:
    assert isinstance(error, AttributeError), type(error)
else:
    raise SystemExit("no error")
scaler.fit_transform(np.zeros((3, 2))), scaler.get_params(), repr(scaler)
sys.exit(any(name.split(".")[0] in ("sklearn", "pandas", "polars") for name in sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_parameters():
    scaler = nbbn.Standardizer(axis=1, with_mean=False)
    copied = clone(scaler.set_output(transform="default"))
    assert copied.get_params() == {"axis": 1, "with_mean": False, "with_std": True}
    assert repr(copied) == "Standardizer(axis=1, with_mean=False)"
    with pytest.raises(
        ValueError, match=r"^params: expected some of axis, with_mean, with_std, got 'mean'"
    ):
        scaler.set_params(with_std=False, mean=1)
    assert scaler.with_std is True


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(1e3, [1.0, 100.0, 0.01], (120, 3))
    return x, (x[:, 0] > 1e3).astype(int)


def test_in_a_pipeline_and_a_search():
    x, y = data()
    pipeline = make_pipeline(nbbn.Standardizer(), LogisticRegression()).fit(x, y)
    theirs = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    np.testing.assert_allclose(pipeline.decision_function(x), theirs.decision_function(x), 1e-6)
    assert list(pipeline[:-1].get_feature_names_out(["a", "b", "c"])) == ["a", "b", "c"]
    assert "Standardizer" in pipeline._repr_html_()
    search = GridSearchCV(pipeline, {"standardizer__with_std": [True, False]}, cv=2).fit(x, y)
    for with_std, score in zip([True, False], search.cv_results_["mean_test_score"], strict=True):
        pair = make_pipeline(StandardScaler(with_std=with_std), LogisticRegression())
        assert score == cross_val_score(pair, x, y, cv=2).mean()


def test_in_a_column_transformer():
    x, _ = data()
    columns = ColumnTransformer([("scaled", nbbn.Standardizer(), [0, 2])], remainder="passthrough")
    found = columns.fit_transform(x)
    assert_same_bits(found[:, :2].copy(), nbbn.Standardizer().fit_transform(x[:, [0, 2]]))
    assert_same_bits(found[:, 2].copy(), x[:, 1].copy())
    assert list(columns.get_feature_names_out()) == ["scaled__x0", "scaled__x2", "remainder__x1"]


@pytest.mark.parametrize("method", ["fit", "partial_fit", "transform", "fit_transform"])
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_matrix"])
def test_sparse_arrays_are_refused(method, kind):
    sparse = pytest.importorskip("scipy.sparse")
    scaler = nbbn.Standardizer().fit(np.eye(4))
    with pytest.raises(TypeError, match=f"^X: expected a dense array of .*, got a sparse {kind}$"):
        getattr(scaler, method)(getattr(sparse, kind)(np.eye(4)))


# Names of features, by a data frame of our own: what matters is `columns`, and that it is an array


class Frame:
    def __init__(self, values, columns):
        self.values, self.columns, self.index = values, columns, range(10, 10 + len(values))

    def __array__(self, dtype=None, copy=None):
        return self.values


def test_names_are_kept_and_compared():
    x = cases.values((9, 2))
    scaler = nbbn.Standardizer().fit(Frame(x, ["age", "height"]))
    assert list(scaler.feature_names_in_) == ["age", "height"]
    assert scaler.feature_names_in_.dtype == object
    assert_same_bits(scaler.transform(Frame(x, ["age", "height"])), scaler.transform(x))
    assert list(scaler.get_feature_names_out(["age", "height"])) == ["age", "height"]
    assert list(scaler.partial_fit(x).get_feature_names_out()) == ["age", "height"]
    sentence = r"expected the names 'age', 'height', got 'height', 'age'$"
    swapped = Frame(x, ["height", "age"])
    for call in (scaler.transform, scaler.inverse_transform, scaler.partial_fit):
        with pytest.raises(ValueError, match=f"^X: {sentence}"):
            call(swapped)
    with pytest.raises(ValueError, match=f"^input_features: {sentence}"):
        scaler.get_feature_names_out(["height", "age"])
    assert scaler.n_samples_seen_ == 18
    assert list(scaler.fit(swapped).feature_names_in_) == ["height", "age"]
    assert not hasattr(scaler.fit(Frame(x, [0, 1])), "feature_names_in_")
    with pytest.raises(ValueError, match=r"^input_features: expected 2 names, got 3$"):
        scaler.get_feature_names_out(["a", "b", "c"])


class Library:
    """What is asked of pandas and polars."""

    def __init__(self, name):
        self.__name__, self.calls = name, []

    def DataFrame(self, *args, **options):  # noqa: N802
        self.calls.append((args, options))
        return "a frame"


@pytest.mark.parametrize("name", ["pandas", "polars"])
def test_output_as_data_frames(name, monkeypatch):
    library = Library(name)
    monkeypatch.setattr(_estimator, "import_module", lambda wanted: {name: library}[wanted])
    x = cases.values((4, 2))
    frame = Frame(x, ["a", "b"])
    scaler = nbbn.Standardizer().set_output(transform=name).set_output()
    assert scaler.fit_transform(frame) == scaler.transform(x) == "a frame"
    assert clone(scaler).fit_transform(x) == "a frame"
    expected = scaler.set_output(transform="default").transform(x)
    keyword, indices = {"pandas": ("columns", [frame.index, None, None]), "polars": ("schema", [])}[
        name
    ]
    for (values,), options in library.calls:
        assert_same_bits(values, expected)
        assert len(options[keyword]) == 2
    assert [options[keyword][0] for _, options in library.calls] == ["a", "a", "x0"]
    assert [options["index"] for _, options in library.calls if "index" in options] == indices


def test_data_frames_are_two_dimensional(monkeypatch):
    monkeypatch.setattr(_estimator, "import_module", Library)
    scaler = nbbn.Standardizer(axis=0).set_output(transform="pandas")
    x = cases.values((4, 2))
    with pytest.raises(ValueError, match=r"^X: expected two dimensions, the features last"):
        scaler.fit_transform(x)
    assert not hasattr(scaler, "mean_")
    with pytest.raises(
        ValueError, match=r"^transform: expected 'default', 'pandas', 'polars' or None"
    ):
        scaler.set_output(transform="xarray")


def test_frames_of_pandas():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    x = cases.values((6, 2))
    frame = pandas.DataFrame(x, columns=["a", "b"], index=list("uvwxyz"))
    scaler = nbbn.Standardizer().set_output(transform="pandas")
    y = scaler.fit_transform(frame)
    assert list(y.columns) == ["a", "b"] and list(y.index) == list("uvwxyz")
    assert_same_bits(y.to_numpy(copy=True), nbbn.Standardizer().fit_transform(x))


def test_frames_of_polars():
    polars = pytest.importorskip("polars", reason="polars is not installed")
    x = cases.values((6, 2))
    frame = polars.DataFrame(x, schema=["a", "b"])
    y = nbbn.Standardizer().set_output(transform="polars").fit_transform(frame)
    assert y.columns == ["a", "b"]
    np.testing.assert_array_equal(y.to_numpy(), nbbn.Standardizer().fit_transform(x))
