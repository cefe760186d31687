"""The mistakes that `tests.planted` plants: by file, with the tests that cover it."""

from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent

# Without a compiler, each formula on small arrays: it takes seconds.
FORMULAS = "test_combinations::test_every_formula_interpreted[float32-float32] "


class Mistake(NamedTuple):
    file: str  # of nbbn/
    tests: list[str]  # that cover the file
    what: str
    right: str  # which stands in the file once
    wrong: str


# file -> (the tests that cover it, (what, right, wrong), ...)
FILES = {
    # --- kernels ---
    "_kernels/activations.py": (
        FORMULAS + "test_activations test_fused",
        ("the derivative of relu at 0 is 1", "where_at_most(v, zero, zero, grad)", "where_below(v, zero, zero, grad)"),
        ("the derivative of relu6 at 6 is 1", "where_below(v, constant(v, 6.0), where_below", "where_at_most(v, constant(v, 6.0), where_below"),
        ("the derivative of mish loses a factor of 2", "fma(v * g * q, q, constant(v, 1.0) - q)", "fma(v * g * q, constant(v, 0.5) * q, constant(v, 1.0) - q)"),
        ("silu of float32 ends too early", "_limited(v, -94.96, -716.02)", "_limited(v, -80.0, -716.02)"),
        ("the gradient of a slope is not multiplied by the argument", "where_below(v, zero, grad * v, zero)", "where_below(v, zero, grad, zero)"),
    ),
    "_kernels/coefficients.py": (
        FORMULAS + "test_kernels test_exactness test_moments test_functional",
        ("the rounding of the center is not made up for", "narrow(form, beta - rest * widen(scale))", "narrow(form, beta)"),
        ("a backward forgets the correction", "(of_gamma / splat(counts.freedom))", "(of_gamma / splat(counts.number))"),
        ("a scale divided by 0 is infinite", "where_at_most(std, zero, zero, gamma / std)", "gamma / std"),
        ("the last channel of a group is not finished", "n = stop - c\n        _, mean, low, m2", "n = stop - c - 1\n        _, mean, low, m2"),
        ("the rest of a gradient is lost", "rest = splat(-1.0) * (of_grad + of_x)", "rest = splat(0.0)"),
    ),
    "_kernels/elementwise.py": (
        FORMULAS + "test_kernels test_functional test_fused test_mask",
        ("x plus the center", "fma(x - c.y.center, c.y.scale, c.y.shift)", "fma(x + c.y.center, c.y.scale, c.y.shift)"),
        ("a gradient loses its last term", "fma((x - center) * c.inv_std, c.slope, c.rest))", "(x - center) * c.inv_std * c.slope)", "test_exactness"),
        ("a mask is not looked at in a backward", "return where_counted(weight_at(read.mask, row, k, count), found, grad * c.grad_x.scale)", "return found"),
        ("an infinite masked value enters the sums of a backward", "where_finite(deviation, grad_y, zero))", "grad_y)"),
        ("a residual is subtracted on the way back", "return plus(value, at_any(read.residual, row, k, count))", "return value - at_any(read.residual, row, k, count)"),
    ),
    "_kernels/loops.py": (
        FORMULAS + "test_kernels test_moments",
        ("sums leave out the last value of a run", "sums = add(read, row, k, length - k, about, sums)", "sums = add(read, row, k, length - k - 1, about, sums)"),
        ("the last value of a row is not written", "n = end - k\n            store_first(y.values, start + k, n, operation", "n = end - k\n            store_first(y.values, start + k, n - 1, operation"),
        ("behind the last channel comes none", "channel = channel + 1 if channel + 1 < channels else 0", "channel = channel + 1 if channel + 1 < channels else channel"),
    ),
    "_kernels/statistics.py": (
        FORMULAS + "test_moments test_exactness",
        ("the means of parts do not enter the variance", "(squares + n * apart * apart)", "squares"),
        ("a lossy sum is not taken again", "return 8.0 if", "return 8e9 if"),
        ("what rounding leaves of a mean is lost", "low = where_finite(deviation, (base - mean) + deviation, zero)", "low = zero"),
        ("parts have one reference", "(n * (about - base) + s)", "s"),
        ("a channel has the values of its last column alone", "where_below(most, n, about, base), whole + n", "where_below(most, n, about, base), n"),
    ),
    "_kernels/table.py": (
        FORMULAS + "test_kernels test_functional test_layer",
        ("the gradients of gamma and beta change places", "OF_GAMMA = 6\nOF_BETA = 7", "OF_GAMMA = 7\nOF_BETA = 6"),
    ),
    "_kernels/columns.py": (
        FORMULAS + "test_kernels test_moments test_exactness",
        ("what folding left over is not merged", "* fold + rest if rest", "* fold if rest"),
        ("a column takes its neighbour's second look", "about = where_below(bound, loss, nearer, about)", "about = nearer"),
        ("a second matrix is read from the first one's rows", "rows_of(x, block.outer, block.row * fold,", "rows_of(x, ZERO, block.row * fold,"),
        ("a second tile gets the first one's coefficients", "rows_in(given, largest, block, fold, ZERO)\n    y = rows_of(to.values, block.outer, block.row * fold, ZERO, fold)\n    columns = block.first, block.first + block.columns", "rows_in(given, largest, block, fold, block.first)\n    y = rows_of(to.values, block.outer, block.row * fold, block.first, fold)\n    columns = ZERO, block.columns"),
    ),
    "_kernels/runs.py": (
        FORMULAS + "test_kernels test_moments test_exactness",
        ("the last piece of a long run counts as a whole one", "float(p.rows * p.length)", "float(p.rows * PIECE)"),
        ("gaps between samples are read as values", "right = row_stride(array) == row and outer_stride(array) == rows * row", "right = row_stride(array) == row"),
        ("a second look forgets the first one's reference", "parts[REFERENCE, part, c] += deviation", "parts[REFERENCE, part, c] = deviation"),
        ("masks of later samples are those of the first", "Rows(given.mask, outer * inner + first, inner)", "Rows(given.mask, first, inner)", "test_mask"),
    ),
    "_kernels/gaps.py": (
        "test_standardizer_gaps",
        ("only the last rows are counted", "sums[2] + number_of(weight, n)", "number_of(weight, n)"),
        ("a missing value is counted", "plus_weight(sums[0], weight, value)", "plus_weight(sums[0], weight, about)"),
        ("what lies behind a run is counted", "first_of(count, value, constant(value, np.nan))", "value"),
    ),
    "_kernels/samples.py": (
        "test_nopython",
        ("m2 is the variance", "m2[c] = table[M2, c]", "m2[c] = table[M2, c] / outer"),
    ),
    "_kernels/steps_of_layers.py": (
        FORMULAS + "test_layer test_kernels",
        ("a running variance forgets its correction", "(batch[M2, c] / divisor)", "(batch[M2, c] / (divisor + 1.0))"),
        ("the counter goes beyond its end", "if counter[0] < LARGEST:", "if counter[0] <= LARGEST:", "test_layer test_persistence test_robustness"),
    ),
    "_kernels/steps_of_runs.py": (
        FORMULAS + "test_kernels test_fused",
        ("one channel after the other, there is no residual", "write_channel(forward, given, to, c)", "write_channel(forward, Given(None, x, None, None, None, kind, None), to, c)"),
        ("the last group of channels is left out", "groups = (channels + group - 1) // group\n    for task in prange(groups * parts.shape[1]):\n        part, first = np.intp(task // groups), np.intp(task % groups) * group\n        stop = smaller(first + group, channels)\n        look_at_group", "groups = channels // group\n    for task in prange(groups * parts.shape[1]):\n        part, first = np.intp(task // groups), np.intp(task % groups) * group\n        stop = smaller(first + group, channels)\n        look_at_group"),
    ),
    "_kernels/steps_of_columns.py": (
        FORMULAS + "test_kernels test_functional",
        ("a backward of columns forgets the correction", "block.first, stop, table, sums, form, Counts(count, freedom))", "block.first, stop, table, sums, form, Counts(count, count))"),
    ),
    # --- the compiler's rooms ---
    "_compiler/vectors.py": (
        "test_simd test_fused test_nonfinite",
        ("relu of NaN is 0", 'to.builder.fcmp_ordered("<", vector, limit)', 'to.builder.fcmp_unordered("<", vector, limit)', "test_fused test_nonfinite test_activations"),
        ("a multiplication and an addition round twice", "return _call(to.builder, \"fma\", a, b, c)", "return to.builder.fadd(to.builder.fmul(a, b), c)", "test_simd"),
    ),
    "_compiler/memory.py": (
        "test_kernels test_moments",
        ("channels of several columns are gathered in reverse", "list(range(LANES)))\n    size", "list(range(LANES))[::-1])\n    size"),
        ("rows begin at their first value", "(array, builder.add(before, first), stride)", "(array, before, stride)"),
    ),
    "_compiler/weights.py": (
        "test_mask",
        ("weights do not weigh", "vector if to.kinds[0] in (BYTESX16, types.none) else to.builder.fmul(weight, vector)", "vector"),
    ),
    "_compiler/formats.py": (
        "test_halves",
        ("bfloat16 rounds ties up", "builder.add(odd, _all(bits, 0x7FFF))", "_all(bits, 0x8000)"),
        ("float16 without instructions rounds ties up", "builder.add(odd, _all(bits, 0xFFF))", "_all(bits, 0x1000)"),
    ),
    "_compiler/interpreted.py": (
        "test_simd test_halves",
        ("interpreted, a float32 multiplication and an addition round twice", "return np.where(inexact, odd, sum_).astype(np.float32)[()]", "return sum_.astype(np.float32)[()]"),
    ),
    "_compiler/cache.py": (
        "test_cache test_faults",
        ("a stale file: the code is no part of its name", "            code,\n            self._options,", "            self._options,"),
        ("files that others may write to are read", "if not _is_of_ours(status) or _others_may_write(status):\n                raise", "if not _is_of_ours(status):\n                raise"),
        ("the file of another variant is taken", 'sha256(path.name.encode() + b"\\0" + payload)', "sha256(payload)"),
        ("what could not be renamed is left behind", "os.unlink(temporary)", "pass"),
        ("bounds checks share a file with code without", "(numba.config.BOUNDSCHECK, str(numba.config.OPT)),", "(str(numba.config.OPT),),"),
    ),
    "_compiler/sources.py": (
        "test_cache",
        ("constants are no part of a name", "content = repr((_content(code), _constants(name)))", "content = repr(_content(code))"),
        ("an edit behind the import is not noticed", "if _files.setdefault(name, file) != file:", "if _files.setdefault(name, file) is file != file:"),
    ),
    "_compiler/forks.py": (
        "test_forks test_robustness",
        ("a lock that was held stays locked in a fork", "owner._lock = threading.RLock()", "pass"),
        ("a fork does not wait for compilers", "for lock in COMPILER_LOCKS:\n        take", "for lock in ():\n        take"),
    ),
    "_compiler/jit.py": (
        "test_kernels test_nonfinite test_robustness",
        ("a handler may raise while something is compiled", "if threading.current_thread() is not threading.main_thread():", "if True:", "test_machine"),
        ("a step is compiled by each thread that asks", "if wanted not in self._ready:", "if True:", "test_robustness test_warmup"),
    ),
    "_compiler/announce.py": (
        "test_observation test_cache",
        ("it says each time that it compiles", "    _said = True\n", "    _said = False\n"),
    ),
    "_compiler/internals.py": (
        "test_threads test_forks test_machine",
        ("a fork believes that it has the threads of its parent", "return bool(numba_parallel._is_initialized)", "return False"),
    ),
    # --- the engine ---
    "_engine/steps.py": (
        "test_functional test_nonfinite test_sync",
        ("an infinite mean makes its shift NaN", "rest[~np.isfinite(rest)] = 0.0", "pass"),
        ("workers forget the correction of a backward", "(inv_std * sums[rows.SUM_PRODUCT]) / (count - correction)", "(inv_std * sums[rows.SUM_PRODUCT]) / count", "test_sync"),
    ),
    "_engine/ways.py": (
        "test_functional test_kernels",
        ("of runs of several samples, the first is summed", "outer * -(-inner // statistics.PIECE)", "-(-inner // statistics.PIECE)", "test_standardizer_gaps"),
        ("the gradient of a half type is kept as one", "in KEPT and x.dtype == self._computed", "in KEPT", "test_backward"),
        ("a gradient is kept in what is still to be read", "if keeps and not (overlap(grad_x, x) or overlap(grad_x, grad_y)):", "if keeps:", "test_backward test_activations"),
        ("a parallel region is never left", "    finally:\n        threads.leave_region(claim)", "    finally:\n        step.last = claim", "test_threads test_explain"),
    ),
    "_engine/plan.py": (
        "test_explain test_kernels",
        ("results in place are written past the cache", "if in_place:\n        return", "if False:\n        return"),
    ),
    "_engine/views.py": (
        "test_layout test_out test_functional",
        ("an out over its input is written to while that is read", "return out is a or not overlap(out, a) or same_memory(out, a)", "return True"),
        ("gaps of columns are read as values", "columns = columns and all(one[index] == inner for one in strides)", "columns = columns and True"),
    ),
    "_engine/masks.py": (
        "test_mask test_ghost_batches",
        ("a mask is read in the order of the axes, not of memory", "key=lambda i: -x.strides[axes[i]]", "key=lambda i: i"),
        ("every part has the mask of the first", "else self.values[begin:end]", "else self.values[: end - begin]"),
        ("a mask that stands for several axes counts once", "float(total) * times", "float(total)"),
    ),
    "_engine/memory.py": (
        "test_pool test_memory",
        ("the pool grows without a limit", "while self.waiting() > self.limit:", "while self.waiting() > 2 * self.limit + (1 << 40):"),
        ("a fork writes into its parent's results", "mmap.MAP_PRIVATE |", "mmap.MAP_SHARED |", "test_pool test_forks"),
    ),
    "_engine/machine.py": (
        "test_machine",
        ("a quota is turned over", "return quota / period", "return period / quota"),
        ("groups above do not bind", "            group = group / name\n            yield group", "            group = group / name\n        yield group"),
    ),
    "_engine/parts.py": (
        "test_kernels test_moments test_mask",
        ("gaps between rows are summed", "len(a) == 1 and a.strides[1] == a.shape[2] * a.itemsize", "len(a) == 1"),
        ("weights of a part begin with those of the next", "(np.cumsum(found.sizes) - found.sizes)", "np.minimum(np.cumsum(found.sizes), weights.size - 1)"),
    ),
    "_engine/known.py": (
        "test_layer test_out test_robustness",
        ("an out that overlaps a known input is written to", "self.is_like(out) and not overlap(out, x)", "self.is_like(out)"),
        ("arrays of other strides are taken for known ones", "other.strides, other.dtype) != self._like", "self._like[1], other.dtype) != self._like"),
        ("functions know arrays of one axis by those of another", "_known(x.shape, x.strides, x.dtype, index)", "_known(x.shape, x.strides, x.dtype, 0)", "test_functional"),
        ("an out that overlaps grad_y alone is written to", "any(out is not array and overlap(out, array) for array in read)", "False"),
    ),
    "_engine/threads.py": (
        "test_threads test_forks test_machine test_observation",
        ("the lost lock: two callers are in a region", "if _region.setdefault(0, reference) is not reference:", "if _region.setdefault(0, reference) is None:"),
        ("a fork uses the threads of its parent", "    if internals.has_started_threads():\n", "    if False:\n"),
        ("any number of callers has a team", "if len(_teams) >= MOST_TEAMS:", "if False:"),
        ("numba's own number of threads is not put back", "internals.set_threads_of_caller(claim.before)", "pass"),
    ),
    "_engine/warmup.py": (
        "test_warmup",
        ("a warm-up forgets residuals", "for residual in (False, True))]", "for residual in (False,))]"),
        ("a warm-up forgets the averages of one dtype", "_PARAMETERS = (np.float32, np.float64)", "_PARAMETERS = (np.float32,)"),
    ),
    "_engine/explain.py": (
        "test_explain",
        ("explain says out of what is written in place", 'return "x itself" if same_memory(out, x) else "out"', 'return "out"'),
    ),
    "_engine/config.py": (
        "test_machine test_observation",
        ("the configuration says yes where no region is started", 'return "yes" if reason is None else f"no: {reason}"', 'return "yes"'),
    ),
    # --- files ---
    "_files/npy.py": (
        "test_stream test_cli_files",
        ("a header may be of any length", "if length > _MOST_HEADER:", "if length > 1 << 40:", "test_stream test_hostile_files"),
        ("a file that is too long is taken", "if self.size != expected:", "if self.size < expected:"),
    ),
    "_files/paths.py": (
        "test_cli_files test_persistence test_faults",
        ("a new file forgets whom the old one kept out", "return stat.S_IMODE(mode)", "return 0o666"),
        ("a file that is changed meanwhile is taken", "if self._look() != self._state:", "if False:", "test_stream test_cli_files"),
    ),
    "_files/state.py": (
        "test_faults test_persistence test_hostile_files",
        ("a file has its name before it is on the disk", "            os.fsync(file.fileno())\n", ""),
        ("an error leaves half a file behind", "            temporary.unlink()\n        if isinstance(error", "            pass\n        if isinstance(error"),
        ("a state of another dtype is taken", "if array.dtype != dtype:", "if False:"),
        ("a compressed member is unpacked", "if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:", "if False:"),
        ("a counter may be below 0", "if not 0 <= number <=", "if not -1 <= number <="),
    ),
    # --- the layer ---
    "layer/_state.py": (
        "test_layer test_nonfinite test_calibrate",
        ("a running variance has no correction", "divisor = count - self._running_correction", "divisor = count"),
        ("a variance that is not finite is accepted", "finite = np.isfinite(mean) & np.isfinite(var)", "finite = np.isfinite(mean)"),
        ("calibration leaves the counter alone", "                    self._counter[0] = batches\n", ""),
        ("an error leaves layers collecting", "self._collected = self._collected, None\n", "self._collected = self._collected, None if is_clean else self._collected\n"),
        ("a loaded layer trains, whatever it did before", "layer.train(training)", "_checks.flag(\"training\", training)", "test_persistence"),
        ("a negative variance is loaded", '_checks.not_negative("running_var", found["running_var"])', "pass", "test_persistence"),
    ),
    "layer/_forward.py": (
        "test_backward test_ghost_batches",
        ("an input that was written over is not noticed", "if out is not None and (out is x or overlap(x, out)):", "if out is x:", "test_backward test_out"),
        ("a last part of too few values stands alone", "<= too_few:", "< too_few:"),
        ("changes at some places are not looked for", "return flat[(x.size - 1) % step :: step].tobytes()", "return flat[:1].tobytes()"),
    ),
    "layer/batch_norm.py": (
        "test_layer test_backward test_out test_robustness",
        ("grad_residual is written over with grad_x", "passed_on = gradient if shared else gradient.copy()", "passed_on = gradient", "test_fused test_out test_backward"),
        ("a backward takes an input that was overwritten", "if array is not None and not is_unchanged(array, token):", "if array is not None and token is None:"),
        ("threads share their last forward", "self._last = self._here.last = last", "self._last = last"),
        ("the statistics of one value are taken", "if count <= self._too_few or", "if count < self._too_few or"),
        ("gradients of parts are those of the last one", "[a + b for a, b in zip(sums, parameters, strict=True)]", "parameters", "test_ghost_batches"),
    ),
    "layer/folding.py": (
        "test_folding",
        ("a bias is not centred", "offset = (before - center) * scale + shift", "offset = before * scale + shift"),
        ("bfloat16 is rounded twice", '(_to_odd(exact) if dtype.name == "bfloat16" else exact)', "exact"),
    ),
    "layer/frozen.py": (
        "test_frozen",
        ("a frozen layer forgets eps", "over_std(gammas.astype(np.float64), variances, epsilon)", "over_std(gammas.astype(np.float64), variances, 0.0)"),
    ),
    "layer/_words.py": (
        "test_words test_errors_layer",
        ("a misspelt option gets no advice", "(alike[0] if alike else None)", "None"),
    ),
    # --- functions and moments ---
    "functional.py": (
        "test_functional test_errors",
        ("a running variance has the correction of the batch", "(variances, rows.M2, count - running_taken)", "(variances, rows.VAR, 1.0)"),
        ("a running variance may be the memory of out", '_checks.apart("running_var", variances, {"out": target})', "pass"),
    ),
    "moments.py": (
        "test_moments test_properties",
        ("the difference of means enters with the wrong weight", "b[0] * (a[0] / total)", "b[0] * (b[0] / total)"),
        ("merging loses the low parts of m2", "_add_to_pair(a[3], a[4] + b[4], b[3])", "_add_to_pair(a[3], a[4], b[3])"),
        ("a correction may take all values", "if taken >= self.count:", "if taken > self.count:"),
    ),
    "nopython.py": (
        "test_nopython",
        ("a shift of another size is read", " and shift.size == channels", ""),
    ),
    "_checks.py": (
        "test_errors test_errors_layer test_out test_mask",
        ("an out that overlaps itself is written to", "        if stride < reach:\n            return True", "        if stride < reach:\n            return False"),
        ("as many values as the correction are enough", "if count <= most or (count == 1 and most > 0):", "if count < most or (count == 1 and most > 0):"),
        ("subnormal weights are taken", "return np.where(exact < _SMALLEST, 0.0, exact)", "return exact"),
        ("a hard overlap counts as none", "    except _TooHardError:\n        return True", "    except _TooHardError:\n        return False", "test_layout test_out test_errors test_robustness test_fuzz"),
    ),
    # --- several workers ---
    "distributed/_exchange.py": (
        "test_sync",
        ("the means of workers have no weight in m2", "        deviations *= counts\n", ""),
        ("a forward may meet a backward", "elif theirs != operation:", "elif False:"),
        ("lists of any shape are taken for an answer", "if not rows or any(row.shape != message.shape for row in rows):", "if not rows:"),
    ),
    "distributed/sync.py": (
        "test_sync",
        ("a worker has the sums of the first one", "sums[...] = theirs[:, : len(sums)].sum(axis=0)", "sums[...] = theirs[0, : len(sums)]"),
    ),
    "distributed/dask.py": (
        "test_dask",
        ("blocks of another order are read as they are", "if isinstance(x, np.ndarray) and not x.flags.forc:", "if False:"),
        ("an empty block is no reason to stop", "    if not x.shape[axis]:\n        return None\n", ""),
        ("what two fits make of an array has one name", "tokenize(function, x, others, options)", "tokenize(function, x, options)", "test_standardizer_dask"),
    ),
    # --- other libraries' layers ---
    "interop/_layers.py": (
        "test_interop_torch test_interop_onnx test_interop_keras",
        ("a momentum of 0.99 is not 0.01", "return short if 1.0 - short == weight else 1.0 - weight", "return 1.0 - weight", "test_interop_keras test_interop_onnx"),
    ),
    "interop/keras.py": (
        "test_interop_keras",
        ("momentum is the weight of the old value", "momentum = _layers.complement(float(momentum))", "momentum = float(momentum)"),
    ),
    "interop/onnx.py": (
        "test_interop_onnx",
        ("external data may lie anywhere", "not found.is_relative_to(root) or ", ""),
        ("shared parameters may take any memory", "if self._shared > _MOST_SHARED:", "if False:"),
    ),
    "interop/_onnx_activations.py": (
        "test_interop_onnx_activations",
        ("any two ends make a relu6", "if ends == [0.0, 6.0] else {}", "if len(ends) == 2 else {}"),
    ),
    "interop/safetensors.py": (
        "test_interop_safetensors",
        ("a file may claim any number of channels", "if any(shape != [features] for shape in shapes) or (", "if False and ("),
    ),
    "interop/torch.py": (
        "test_interop_torch",
        ("a module in inference trains", ").train(module.training)", ").train()"),
    ),
    # --- data sets ---
    "standardizer/_features.py": (
        "test_standardizer test_standardizer_gaps",
        ("what rounding leaves of a constant feature is scaled", "constant = var <= each * var + (each * self.mean) ** 2", "constant = var <= 0.0"),
        ("weights of a block are those of the first one", "weights[place[axis]]", "weights[: place[axis].stop - place[axis].start]"),
        ("a look after a chunk forgets those before", "self.filled, self.seen = begin + size, None", "self.filled = begin + size"),
        ("features of different counts are taken for even ones", " or (self.counts != self.counts[0]).any():", ":"),
        ("a chunk of another dtype is kept as it is", "if X.dtype != self._rows.dtype or size", "if size"),
    ),
    "standardizer/_dataset.py": (
        "test_standardizer test_standardizer_gaps",
        ("the way back adds what rounding left twice", "-rest / scale", "rest / scale"),
        ("the way back of a sparse matrix is the way there", "factors = scale if inverse else 1.0 / scale", "factors = 1.0 / scale", "test_standardizer_sklearn"),
    ),
    "standardizer/_blocks.py": (
        "test_standardizer_gaps test_stream",
        ("a sample between blocks is left out", "slice(start, start + samples)", "slice(start, start + samples - 1)"),
    ),
    "standardizer/_stream.py": (
        "test_stream test_cli_files",
        ("parts of a long run are read from its beginning", "(first * channels + channel) * inner + place", "(first * channels + channel) * inner"),
        ("statistics may be negative", 'if (vectors["var"] < 0).any():', "if False:", "test_stream test_hostile_files"),
    ),
    "standardizer/_tables.py": (
        "test_tables",
        ("missing cells become NaN", "kind, mask=missing)", "kind)"),
        ("a column stands twice", "        if twice:\n", "        if False:\n"),
    ),
    "standardizer/_estimator.py": (
        "test_standardizer_sklearn",
        ("names in another order are the same", "if given is not None and known is not None and tuple(given) != known:\n        raise ValueError(f\"{name}: {_mismatch", "if given is not None and known is not None and {*given} != {*known}:\n        raise ValueError(f\"{name}: {_mismatch"),
    ),
    "standardizer/standardizer.py": (
        "test_standardizer test_threads",
        ("partial_fit begins anew", "moments, names, form = earlier.moments.merge(moments), earlier.names or names, None", "names = earlier.names or names"),
        ("chunks of an earlier fit, of other features, are gone on with", "form, like, self._chunks = given.form, (given.axis, moments.mean.size), None", "form, like = given.form, (given.axis, moments.mean.size)"),
    ),
    # --- commands and yardsticks ---
    "cli/__init__.py": (
        "test_cli test_cli_files",
        ("a signal ends a command as an error does", "raise SystemExit(128 + number)", "raise SystemExit(BAD_INPUT)"),
    ),
    "cli/_inputs.py": (
        "test_cli_files",
        ("statistics of other channels are applied", "if statistics.mean.size != self.channels:", "if False:"),
    ),
    "cli/_files.py": (
        "test_cli_files test_tables",
        ("room on the disk is not looked for", "if free < size:", "if free < 0:"),
        ("a link to the input may be the output of statistics", "path.resolve() == other.resolve():", "path == other:"),
    ),
    "cli/_tables.py": (
        "test_tables",
        ("a column may be named twice", "if len(set(names)) < len(names):", "if False:"),
    ),
    "cli/moments.py": (
        "test_cli_files test_tables",
        ("a channel without values has mean 0 in JSON", '"mean": mean if count else None', '"mean": mean if count else 0.0'),
    ),
    "cli/_experiment.py": (
        "test_demo",
        ("the gradient is that of a sum of losses", "gradient / len(labels)", "gradient"),
    ),
    "cli/_progress.py": (
        "test_cli",
        ("a bar is not wiped", 'self._draw(wipe=True)', "pass"),
    ),
    "_bench/problem.py": (
        "test_bench test_yardsticks",
        ("a wrong result is raced", "if not error <= TOLERANCE * scale:", "if error > 1e9 * scale:"),
    ),
    "_bench/race.py": (
        "test_bench",
        ("medians are means", "return statistics.median(self.durations)", "return statistics.fmean(self.durations)"),
    ),
}  # fmt: skip


def _mistakes():
    for file, (tests, *given) in FILES.items():
        for what, right, wrong, *own in given:
            names = (own[0] if own else tests).split()
            yield Mistake(file, list(map(_path, names)), what, right, wrong)


def _path(name):
    file, *test = name.split("::")
    (path,) = TESTS.rglob(f"{file}.py")
    return "::".join(("/".join(path.parts[-3:]), *test))


MISTAKES = list(_mistakes())
