"""Arrays in foreign byte order: refused, whatever the process has seen before."""

import cases
import pytest
from compare import snapshot

import nbbn


@pytest.mark.parametrize("shape", [(40, 3), (4, 3, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_bytes_in_foreign_order_are_never_read_as_native_ones(shape, dtype):
    """numba remembers the type of a misaligned array under a key that has no byte order."""
    x = cases.values(shape, dtype)
    foreign, bn = x.astype(x.dtype.newbyteorder()), nbbn.BatchNorm(3, dtype=dtype)
    calls = {
        "x": lambda: bn(foreign, training=False),
        "x of training": lambda: bn(foreign),
        "x of moments": lambda: nbbn.batch_moments(foreign),
        "out": lambda: bn(x, training=False, out=foreign),
        "out of training": lambda: bn(x, out=foreign),
        "grad_y": lambda: bn.backward(foreign),
        "out of backward": lambda: bn.backward(x, out=foreign),
    }
    for layout in (cases.unaligned, cases.read_only, cases.read_only_strided):
        seen = layout(x)
        bn(seen, training=False), nbbn.batch_moments(seen), bn(seen), bn.backward(seen)
        bn(x, out=cases.unaligned(x), training=False), bn(x, out=cases.unaligned(x))
        bn.backward(x, out=cases.unaligned(x))
        before = snapshot(bn), foreign.tobytes()
        for name, call in calls.items():
            with pytest.raises((TypeError, ValueError), match=f"^{name.split()[0]}: expected"):
                call()
            assert (snapshot(bn), foreign.tobytes()) == before
