"""Doctests of the methods of classes that say they are of another module than the one they are written in."""

import doctest
import inspect

_from_module = doctest.DocTestFinder._from_module


def _is_written_in(self, module, value):
    """Public classes say that they are of `nbbn`, where pickles find them. doctest would pass over their methods."""
    if inspect.isclass(value):
        methods = [method for method in vars(value).values() if inspect.isfunction(method)]
        if methods:
            return any(method.__globals__ is vars(module) for method in methods)
    return _from_module(self, module, value)


doctest.DocTestFinder._from_module = _is_written_in
