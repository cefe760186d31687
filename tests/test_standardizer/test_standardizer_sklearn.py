"""Standardizer in scikit-learn's hands, and beside its StandardScaler."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import cases
import numpy as np
import processes
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of

import nbbn
from nbbn.standardizer import _estimator

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

import sklearn
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


@pytest.mark.skipif(not has_tags, reason="scikit-learn before 1.6 tells no checks by name")
@pytest.mark.filterwarnings("ignore:Estimator Standardizer does not inherit:UserWarning")
@pytest.mark.parametrize("with_mean", [True, False])
def test_scikit_learns_own_checks(with_mean):
    """None is expected to fail."""
    scaler = nbbn.Standardizer(with_mean=with_mean)
    results = estimator_checks.check_estimator(scaler, on_fail=None, on_skip=None)
    found = {result["status"]: [] for result in results}
    for result in results:
        found[result["status"]].append((result["check_name"], result["exception"]))
    assert set(found) <= {"passed", "skipped"}, found
    assert len(found["passed"]) > 45


AS_STANDARD_SCALER = """
import inspect, json, sys
import nbbn, pytest
import sklearn.preprocessing

sklearn.preprocessing.StandardScaler = nbbn.Standardizer


class Theirs:
    counts = dict.fromkeys(("passed", "skipped", "failed"), 0)
    names = []

    def pytest_collection_modifyitems(self, items):
        # whatever is parametrized with it, or calls it
        items[:] = [item for item in items if "StandardScaler" in inspect.getsource(item.function)]

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
            if report.outcome == "failed":
                self.names.append(report.nodeid)


theirs = Theirs()
module = "sklearn.preprocessing.tests.test_data"
options = ["--pyargs", module, "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", sys.argv[1]]
pytest.main(options, plugins=[theirs])
print(json.dumps([theirs.counts, theirs.names]))
"""


@pytest.mark.long
@pytest.mark.skipif(not has_tags, reason="its tests before 1.6 have other fixtures")
def test_scikit_learns_tests_of_the_standard_scaler(tmp_path):
    """All of the installed version, with Standardizer in its place, but those of callbacks."""
    command = [sys.executable, "-c", AS_STANDARD_SCALER, str(tmp_path)]
    # Options of this run of pytest, and of scipy, would choose other tests.
    kept = {name: v for name, v in os.environ.items() if not name.startswith(("PYTEST", "SCIPY"))}
    options = {"capture_output": True, "text": True, "timeout": 1800, "cwd": tmp_path, "env": kept}
    found = subprocess.run(command, **options)
    counts, names = json.loads(found.stdout.splitlines()[-1])
    assert [name for name in names if "callback" not in name] == [], found.stdout[-5000:]
    assert counts["passed"] >= 250
    if find_spec("pandas") and find_spec("polars") and sklearn.__version__.startswith("1.9"):
        readme = (processes.ROOT / "README.md").read_text(encoding="utf-8")
        of_all = counts["passed"] + counts["failed"]
        assert f"{counts['passed']} of the {of_all} tests" in readme, found.stdout[-5000:]


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
    expected = {"axis": 1, "with_mean": False, "with_std": True, "copy": True}
    assert copied.get_params() == expected
    assert repr(copied) == "Standardizer(axis=1, with_mean=False)"
    with pytest.raises(ValueError, match=r"^params: expected some of axis, with_mean, with_std, copy, got 'mean'"):
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
    without = "^X does not have valid feature names, but Standardizer was fitted with feature names$"
    with pytest.warns(UserWarning, match=without):
        y = scaler.transform(x)
    assert_same_bits(scaler.transform(Frame(x, ["age", "height"])), y)
    assert list(scaler.get_feature_names_out(["age", "height"])) == ["age", "height"]
    with pytest.warns(UserWarning, match=without):
        assert list(scaler.partial_fit(x).get_feature_names_out()) == ["age", "height"]
    sentence = r"expected the names 'age', 'height', got 'height', 'age' "
    swapped = Frame(x, ["height", "age"])
    for call in (scaler.transform, scaler.inverse_transform, scaler.partial_fit):
        with pytest.raises(ValueError, match=f"^X: {sentence}"):
            call(swapped)
    with pytest.raises(ValueError, match=f"^input_features: {sentence}"):
        scaler.get_feature_names_out(["height", "age"])
    assert scaler.n_samples_seen_ == 18
    assert list(scaler.fit(swapped).feature_names_in_) == ["height", "age"]
    assert not hasattr(scaler.fit(Frame(x, [0, 1])), "feature_names_in_")
    with pytest.raises(ValueError, match=r"^input_features: expected 2 names, got 3 "):
        scaler.get_feature_names_out(["a", "b", "c"])
    with pytest.warns(UserWarning, match="^X has feature names, but Standardizer was fitted without"):
        scaler.fit(x).transform(swapped)


def test_names_that_are_new_or_missing_are_listed():
    x = cases.values((9, 2))
    scaler = nbbn.Standardizer().fit(Frame(x, ["age", "height"]))
    sentence = "(?s)unseen at fit time:\n- weight\n.*seen at fit time, yet now missing:\n- height"
    with pytest.raises(ValueError, match=sentence):
        scaler.transform(Frame(x, ["age", "weight"]))


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
    assert scaler.fit_transform(frame) == scaler.transform(frame) == "a frame"
    assert clone(scaler).fit_transform(x) == "a frame"
    expected = scaler.set_output(transform="default").transform(frame)
    keyword, indices = {
        "pandas": ("columns", [frame.index, frame.index, None]),
        "polars": ("schema", []),
    }[name]
    for (values,), options in library.calls:
        assert_same_bits(values, expected)
        assert len(options[keyword]) == 2
    assert [options[keyword][0] for _, options in library.calls] == ["a", "a", "x0"]
    assert [options["index"] for _, options in library.calls if "index" in options] == indices


def test_data_frames_are_two_dimensional():
    scaler = nbbn.Standardizer(axis=0).set_output(transform="pandas")
    x = cases.values((4, 2))
    with pytest.raises(ValueError, match=r"^X: expected two dimensions, the features last"):
        scaler.fit_transform(x)
    assert not hasattr(scaler, "mean_")
    with pytest.raises(ValueError, match=r"^transform: expected 'default', 'pandas', 'polars' or None"):
        scaler.set_output(transform="xarray")


def frame_of(library, x, names):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    options = {"columns": names} if library == "pandas" else {"schema": names, "orient": "row"}
    return module.DataFrame(x, **options)


by_library = pytest.mark.parametrize("library", ["pandas", "polars"])


@by_library
@pytest.mark.parametrize("for_all", [False, True])
def test_frames_in_and_out(library, for_all):
    x = cases.values((6, 2))
    frame = frame_of(library, x, ["a", "b"])
    if library == "pandas":
        frame.index = list("uvwxyz")
    scaler = nbbn.Standardizer()
    with sklearn.config_context(transform_output=library if for_all else "default"):
        if not for_all:
            scaler.set_output(transform=library)
        y = scaler.fit_transform(frame)
        assert type(y) is type(frame)
        assert list(y.columns) == ["a", "b"]
        if library == "pandas":
            assert list(y.index) == list("uvwxyz")
        expected = nbbn.Standardizer().set_output(transform="default").fit_transform(x)
        assert_same_bits(np.array(y.to_numpy(), order="C"), expected)
        back = nbbn.Standardizer().fit(x).inverse_transform(expected)
        np.testing.assert_array_equal(scaler.inverse_transform(y), back)
    y = make_pipeline(nbbn.Standardizer(), nbbn.Standardizer()).set_output(transform=library)
    assert type(y.fit_transform(frame)) is type(frame)


@by_library
def test_columns_of_several_types(library):
    module = pytest.importorskip(library, reason=f"{library} is not installed")
    columns = {"i": [1, 2, 3, 6], "f": [0.5, None, 1.5, 4.0], "b": [True, False, True, True]}
    frame = module.DataFrame(columns)
    scaler, theirs = nbbn.Standardizer(), StandardScaler()
    y = scaler.fit_transform(frame)
    np.testing.assert_allclose(y, theirs.fit_transform(frame), rtol=1e-12)
    assert y.dtype == np.float64
    assert scaler.n_samples_seen_.tolist() == theirs.n_samples_seen_.tolist() == [4, 3, 4]
    if library == "pandas":
        own = frame.astype({"i": "Int64", "f": "Float64", "b": "boolean"})
        np.testing.assert_array_equal(nbbn.Standardizer().fit_transform(own), y)
    with pytest.raises(ValueError, match=r"^X: expected numbers, got an object that is none"):
        scaler.fit(module.DataFrame({"i": [1.0, 2.0], "s": ["x", "y"]}))


@by_library
def test_a_column_transformer_of_frames(library):
    frame = frame_of(library, data()[0], ["a", "b", "c"])
    columns = ColumnTransformer(
        [("scaled", nbbn.Standardizer(), ["a", "c"])],
        remainder="passthrough",
        verbose_feature_names_out=False,
    ).set_output(transform=library)
    found = columns.fit_transform(frame)
    assert list(found.columns) == ["a", "c", "b"]
    expected = StandardScaler().fit_transform(frame[["a", "c"]])
    np.testing.assert_allclose(found[["a", "c"]].to_numpy(), expected, rtol=1e-9, atol=1e-9)


def test_weights_are_routed():
    x, y = data()
    weights = np.linspace(0.1, 2, len(x))
    with sklearn.config_context(enable_metadata_routing=True):
        scaler = nbbn.Standardizer().set_fit_request(sample_weight=True)
        model = LogisticRegression().set_fit_request(sample_weight="other")
        pipeline = make_pipeline(clone(scaler), model).fit(x, y, sample_weight=weights)
        theirs = make_pipeline(StandardScaler().set_fit_request(sample_weight=True), clone(model))
        theirs.fit(x, y, sample_weight=weights)
        np.testing.assert_allclose(pipeline[0].mean_, theirs[0].mean_, rtol=1e-12)
        np.testing.assert_allclose(pipeline[0].scale_, theirs[0].scale_, rtol=1e-9)
        refused = make_pipeline(nbbn.Standardizer(), model)
        with pytest.raises(ValueError, match="sample_weight"):
            refused.fit(x, y, sample_weight=weights)
        scaler.set_partial_fit_request(sample_weight=False)
        routing = scaler.get_metadata_routing()
        assert routing.fit.requests == {"sample_weight": True}
        assert routing.partial_fit.requests == {"sample_weight": False}


def test_a_pipeline_that_has_weights_for_one_step():
    x, y = data()
    weights = np.linspace(0.1, 2, len(x))
    pipeline = make_pipeline(nbbn.Standardizer(), LogisticRegression())
    pipeline.fit(x, y, standardizer__sample_weight=weights)
    expected = nbbn.Standardizer().fit(x, sample_weight=weights)
    np.testing.assert_array_equal(pipeline[0].mean_, expected.mean_)


# Sparse matrices


def sparse_of(x, kind):
    return getattr(pytest.importorskip("scipy.sparse", reason="SciPy is not installed"), kind)(x)


def some_zeros(dtype=np.float64, gaps=True):
    x = np.where(np.random.default_rng(0).random((40, 5)) < 0.3, cases.values((40, 5), dtype), 0)
    x[:, 2] = 0
    if gaps:
        x[3, 1] = x[5, 4] = np.nan
    return x.astype(dtype)


by_kind = pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array"])


@by_kind
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("weighted", [False, True])
def test_sparse_as_dense(kind, dtype, weighted):
    x = some_zeros(dtype, gaps=dtype != np.int16)
    weights = np.linspace(0, 2, len(x)) if weighted else None
    dense, sparse = (nbbn.Standardizer(with_mean=False) for _ in range(2))
    dense.fit(x, sample_weight=weights)
    for part in (slice(0, 15), slice(15, 40)):
        w = None if weights is None else weights[part]
        sparse.partial_fit(sparse_of(x[part], kind), sample_weight=w)
    assert sparse.fit(sparse_of(x, kind), sample_weight=weights) is sparse
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        np.testing.assert_allclose(getattr(sparse, name), getattr(dense, name), rtol=1e-9, atol=1e-15)
    given = sparse_of(x, kind)
    y = sparse.transform(given)
    assert (y.format, y.dtype) == ("csr", dense.transform(x).dtype)
    np.testing.assert_allclose(y.toarray(), dense.transform(x), rtol=1e-6)
    np.testing.assert_array_equal(given.toarray(), x)
    back = sparse.inverse_transform(y)
    np.testing.assert_allclose(back.toarray(), x, rtol=1e-6)
    assert not np.shares_memory(y.indices, back.indices)


def test_sparse_in_place():
    given = sparse_of(some_zeros(), "csr_array")
    scaler = nbbn.Standardizer(with_mean=False, copy=False).fit(given)
    expected = scaler.transform(given, copy=True).toarray()
    assert scaler.transform(given) is given
    np.testing.assert_array_equal(given.toarray(), expected)


@by_kind
@pytest.mark.parametrize("method", ["fit", "transform", "inverse_transform", "fit_transform"])
def test_what_sparse_matrices_refuse(kind, method):
    given = sparse_of(some_zeros(), kind)
    scaler = nbbn.Standardizer().fit(some_zeros())
    with pytest.raises(ValueError, match=r"^with_mean: expected False for a sparse matrix, .* got True"):
        getattr(scaler, method)(given)
    scaler = nbbn.Standardizer(with_mean=False).fit(some_zeros())
    infinite = given.tocsr()
    infinite.data[3] = np.inf
    with pytest.raises(ValueError, match=r"^X: expected finite values, or NaN"):
        getattr(scaler, method)(infinite)
    if method != "fit":
        with pytest.raises(ValueError, match=r"^out: expected None for a sparse matrix"):
            getattr(scaler, method)(given, out=some_zeros())
    if method.endswith("fit_transform"):
        scaler.set_output(transform="pandas")
        with pytest.raises(ValueError, match=r"^X: expected a dense array for a data frame of pandas"):
            getattr(scaler, method)(given)
    scaler = nbbn.Standardizer(with_mean=False, axis=0)
    with pytest.raises(ValueError, match=r"^axis: expected -1 for a sparse matrix, got 0"):
        scaler.fit(given)


def test_sparse_sums_that_overflow_are_not_infinite_values():
    x = sparse_of(np.array([[1e308], [1e308], [1e308]]), "csr_array")
    assert not np.isfinite(nbbn.Standardizer(with_mean=False).fit(x).var_[0])
