"""The state of a layer in dictionaries, files, pickles and copies, and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._files import state as state_files
from nbbn._kernels import table as rows
from nbbn.layer._state import ARRAYS, CHECKS, LayerState

_OF_BATCH = [rows.MEAN, rows.VAR, rows.INV_STD]  # what is shown of a training batch


class StoredLayer(LayerState):
    """How a layer is saved, loaded, pickled and printed."""

    __slots__ = ()

    def _arrays(self) -> dict[str, Array]:
        """Return the rows of the table that exist as attributes."""
        return {name: self._table[row] for name, (row, _) in ARRAYS.items() if getattr(self, f"_{name}") is not None}

    def _options(self) -> dict[str, Any]:
        """Return the options, as the constructor takes them and JSON can hold them."""
        found = {name: getattr(self, f"_{name}") for name in CHECKS}
        return {**found, "num_features": self.num_features, "dtype": self._dtype.name}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the parameters and running statistics, and the counter.

        Returns
        -------
        dict
            ``gamma, beta, running_mean, running_var`` (those that exist) and ``num_batches_tracked``.

        Examples
        --------
        >>> import nbbn
        >>> sorted(nbbn.BatchNorm(3, center=False).state_dict())
        ['gamma', 'num_batches_tracked', 'running_mean', 'running_var']
        """
        with self._lock:
            state: dict[str, Any] = {name: a.copy() for name, a in self._arrays().items()}
            state["num_batches_tracked"] = self.num_batches_tracked
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set parameters, running statistics and counter from what `state_dict` returned.

        Parameters
        ----------
        state : mapping
            With exactly the names of `state_dict`, and arrays of this layer's shapes and dtype; the
            counter may be an array of one value, of any numeric dtype. A layer that is not built yet
            takes its number of channels from them.

        Raises
        ------
        TypeError
            Where it is not a mapping, or the counter not an integer.
        ValueError
            For a wrong name, shape or dtype, and a negative variance. The layer is unchanged then.

        Examples
        --------
        >>> import nbbn
        >>> bn, other = nbbn.BatchNorm(3), nbbn.BatchNorm(3)
        >>> bn.load_state_dict(other.state_dict())
        """
        found, number = state_files.checked_state(state, self._expected(state))
        if "running_var" in found:
            _checks.not_negative("running_var", found["running_var"])
        if found:
            self.build(next(iter(found.values())).size)
        self._put(found, number)

    def _expected(self, state: Any) -> dict[str, Array]:
        """Return arrays of the shapes and the dtype that those in ``state`` must have."""
        names = [name for name, (_, option) in ARRAYS.items() if getattr(self, f"_{option}")]
        if self._num_features or not isinstance(state, Mapping) or len(state) == 1:
            return self._arrays()
        channels = max((np.asarray(state[name]).size for name in names if name in state), default=1)
        return dict.fromkeys(names, np.empty(channels or 1, self._dtype))

    def _put(self, values: Mapping[str, Array], number: int) -> None:
        with self._lock:
            for name, array in self._arrays().items():
                array[...] = values[name]
            self._counter[0] = number

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration, parameters and running statistics to an ``.npz`` file.

        The file is written under another name in the same folder and renamed when it is whole.

        Parameters
        ----------
        path : str or path-like
            The file's name, used as it is.

        Raises
        ------
        OSError
            Where it can't be written; a file that was there before is unchanged.
        ValueError
            Where ``path`` is a pipe or a device.

        Examples
        --------
        >>> import nbbn, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     nbbn.BatchNorm(3, axis=-1).eval().save(path)
        ...     nbbn.BatchNorm.load(path)
        BatchNorm(3, axis=-1, inference)
        """
        state_files.save(path, {**self._options(), "training": self.training}, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the layer that `save` wrote.

        Nothing in the file is executed, and sizes are checked before memory is taken.

        Parameters
        ----------
        path : str or path-like
            The file's name.

        Returns
        -------
        BatchNorm
            A new layer, in the mode that it was saved in.

        Raises
        ------
        OSError, ValueError
            Where the file can't be read, and where it is not such a file.

        Examples
        --------
        As of `save`.
        """
        with state_files.opened(path) as file:
            options = file.options()
            training = options.pop("training", None)
            try:
                layer = cls(**options)
                layer.train(training)
                layer.load_state_dict(file.state(layer._arrays()))
            except (TypeError, ValueError) as error:
                raise ValueError(f"path: expected what save writes, got {path!s}: {error}") from error
        return layer

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _KEPT} | getattr(self, "__dict__", {})
        batch = None if self._batch is None else self._batch[_OF_BATCH]
        options, state = self._options(), self.state_dict()
        return {"options": options, "state": state, "batch": batch, "attributes": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LayerState.__init__(self, **state["options"])
        self._put(*state_files.checked_state(state["state"], self._arrays()))
        own = state["attributes"]
        batch = state.get("batch")
        if own.get("_batch") is not None:  # a pickle with a table whose rows stood otherwise
            batch = own["_batch"][[0, 2, 6]]
        if batch is not None:
            self._batch = np.zeros((rows.STATISTICS_ROWS, self._num_features))
            self._batch[_OF_BATCH] = batch
        private = {*LayerState.__slots__} - {*_KEPT}
        for name, value in own.items():
            if name not in private:
                setattr(self, name, value)

    def __repr__(self) -> str:
        shown = [str(self._num_features) if self._num_features else "not built"]
        for name, value in self._options().items():
            if name != "num_features" and value != _DEFAULTS[name]:
                shown.append(f"{name}={value!r}")
        shown.append("training" if self._training else "inference")
        if self.num_batches_tracked:
            shown.append(f"{self.num_batches_tracked} batches tracked")
        return f"{type(self).__name__}({', '.join(shown)})"


_DEFAULTS = StoredLayer()._options()
_KEPT = ("_training", "grad_gamma", "grad_beta", "grad_slope", "grad_residual")  # in pickles, besides the state
