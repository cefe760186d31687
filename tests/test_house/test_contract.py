"""The tests that hold the contract are there, and so are its signatures."""

import ast
import functools
import inspect

import processes
import pytest
from contract import TESTS

import nbbn
from nbbn import distributed, interop

LINES = [(section, line) for section, lines in TESTS.items() for line in lines]


@functools.cache
def names_in(file):
    (path,) = processes.TESTS.rglob(f"test_{file}.py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("section", "line"), LINES, ids=[line for _, line in LINES])
def test_a_line_has_tests(section, line):
    assert TESTS[section][line]
    for test in TESTS[section][line]:
        file, name = test.split("::")
        assert f"test_{name}" in names_in(file), test


def test_every_section_has_lines():
    assert [int(section.split(".")[0]) for section in TESTS] == list(range(2, 12))


SIGNATURES = {
    nbbn.BatchNorm: "num_features=None, *, axis=1, eps=1e-05, momentum=0.1, scale=True, center=True,"
    " track_running_stats=True, correction=0, running_correction=1, activation=None, negative_slope=0.01,"
    " virtual_batch_size=None, on_nonfinite='propagate', dtype=float32",
    nbbn.BatchNorm.__call__: "self, x, *, training=None, mask=None, residual=None, out=None",
    nbbn.BatchNorm.backward: "self, grad_y, *, out=None",
    nbbn.BatchNorm.train: "self, mode=True",
    nbbn.BatchNorm.build: "self, num_features",
    nbbn.batch_moments: "x, *, axis=1, mask=None, weights=None",
    nbbn.batch_norm: "x, running_mean, running_var, gamma=None, beta=None, *, training=False, momentum=0.1,"
    " eps=1e-05, axis=1, correction=0, running_correction=1, mask=None, residual=None, activation=None,"
    " negative_slope=0.01, out=None",
    nbbn.normalize: "x, mean, var, gamma=None, beta=None, *, eps=1e-05, axis=1, residual=None,"
    " activation=None, negative_slope=0.01, dtype=None, out=None",
    nbbn.explain: "x, op='inference', *, axis=1, out=None",
    nbbn.batch_norm_backward: "grad_y, x, mean, inv_std, gamma=None, *, axis=1, training=True, mask=None,"
    " correction=0, out=None",
    nbbn.Moments.update: "self, x, axis=1, mask=None",
    nbbn.Moments.from_batches: "batches, axis=1",
    nbbn.Moments.var: "self, correction=0",
    nbbn.FrozenBatchNorm: "center, scale, shift, *, axis=1, activation=None, negative_slope=0.01",
    nbbn.FrozenBatchNorm.__call__: "self, x, *, residual=None, out=None",
    nbbn.fold_linear: "weight, bias, bn",
    nbbn.fold_conv: "weight, bias, bn, *, transposed=False, groups=1",
    interop.from_torch: "obj, *, prefix='', eps=1e-05, momentum=0.1",
    interop.load_safetensors: "path, *, prefix='', eps=1e-05, momentum=0.1",
    interop.save_safetensors: "bn, path",
    interop.from_keras: "obj, *, axis=-1",
    nbbn.warmup: "dtypes=('float32',), training=False, *, activations=()",
    distributed.SyncBatchNorm: "num_features, *, comm, **options",
    distributed.dask_moments: "x, *, axis=1, mask=None",
}


@pytest.mark.parametrize("thing", SIGNATURES, ids=lambda thing: thing.__qualname__)
def test_the_signatures(thing):
    signature = inspect.signature(thing)
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "others"]
    found = str(inspect.Signature(plain)).removeprefix("(").removesuffix(")")
    assert found.replace("<class 'numpy.float32'>", "float32") == SIGNATURES[thing]


@pytest.mark.parametrize("name", nbbn.__all__)
def test_every_public_name_says_what_it_is(name):
    assert inspect.getdoc(getattr(nbbn, name))
