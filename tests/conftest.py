"""Settings that must be in place before numba is imported; and how a run of all tests takes every core."""

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import settings

# Tests compare one thread with up to four; numba fixes its maximum at import, to the number of cores it sees.
os.environ.setdefault("NUMBA_NUM_THREADS", str(max(4, os.cpu_count() or 1)))
# Several processes share the cores: idle OpenMP threads of one sleep, and do not spin where another works.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Every test of examples says how many it takes at most; --hypothesis-profile=many lets it.
for profile, most in (("few", 10), ("many", sys.maxsize)):
    settings.register_profile(profile, max_examples=most, deadline=None, derandomize=True, database=None)
settings.load_profile("few")

# What most files of tests need, each in a process of its own; no two compile the same.
WARMUPS = (
    ("--dtype", "float32", "--training"),
    ("--dtype", "float64", "--training"),
    ("--dtype", "float16"),
    ("--dtype", "uint8"),
)

# Tests whose parameters compile one thing after another: the marker goes to all of them but those that hold the
# second text. By compiling, and by starting processes, they took two thirds of a default run, and what they alone
# catch are no mistakes in formulas, loops, errors or state (docs/contributing.md, the planted ones).
LONG_BUT_FOR = (
    ("test_activations.py::test_the_same_bits_in_every_layout_and_batch", None),
    ("test_bench.py::test_every_library_is_right_in_all_it_has", "[nbbn]"),
    ("test_bench.py::test_table_and_files", None),
    ("test_cache.py::test_a_constant_that_another_machine", None),
    ("test_cache.py::test_a_package_without_source_files", None),
    ("test_cache.py::test_an_edit_of_", None),
    ("test_cache.py::test_one_line_on_a_terminal", None),
    ("test_cache.py::test_the_names_are_those_of_the_code", None),
    ("test_cli.py::test_streams_that_are_closed", "/dev/full-2-nbbn"),
    ("test_cli_files.py::test_a_bar_on_a_terminal", None),
    ("test_cli_files.py::test_a_file_larger_than_the_memory_that", None),
    ("test_cli_files.py::test_a_process_that_is_killed", None),
    ("test_cli_files.py::test_an_interrupt_leaves_nothing", "[terminated]"),
    ("test_combinations.py::test_every_combination", None),
    ("test_dask.py::test_a_killed_worker_costs_time", None),
    ("test_dask.py::test_the_bits_are_the_same_on_every_scheduler", None),
    ("test_distributed_guide.py::test_", None),
    ("test_exactness.py::test_no_deviation_and_eps_0", "[float32-shape0-"),
    ("test_frozen.py::test_the_activation_is_frozen_too", "[relu-shape1-"),
    ("test_halves.py::test_training_and_gradients_are_the_float32_results", None),
    ("test_hostile_files.py::test_archives_that_grow", "[gamma"),
    ("test_interop_onnx.py::test_a_spoiled_file", None),
    ("test_machine.py::test_a_fork_while_the_threading_layer", "[0.001]"),
    ("test_machine.py::test_the_configuration_tells_whether", "[one thread]"),
    ("test_machine.py::test_the_configuration_tells_why_nothing", None),
    ("test_mask.py::test_gradients_where_rows_in_a_row_are_masked", None),
    ("test_memory.py::test_memory_of_dropped_results", "[0]"),
    ("test_moments.py::test_merging_ten_thousand", "[shuffled]"),
    ("test_net.py::test_a_revision_and_a_planted_change", None),
    ("test_net.py::test_every_case_works", None),
    ("test_net.py::test_interpreted_results_are", None),
    ("test_net.py::test_one_thread_several", None),
    ("test_nopython.py::test_in_a_parallel_loop", None),
    ("test_performance_page.py::test_a_new_run", None),
    ("test_pool.py::test_the_limit_is_a_setting", "[1000-1000]"),
    ("test_readme.py::test_python_blocks_run[inference.md]", None),
    ("test_robustness.py::test_numpys_errors_are_no_business", None),
    ("test_standardizer_dask.py::test_gaps_weights_and", "[0]"),
    ("test_standardizer_gaps.py::test_the_pass_that_writes", "C-shape1-float64"),
    ("test_stream.py::test_as_exact_as_in_memory_far", "[1000.0]"),
    ("test_sync.py::test_masks", None),
    ("test_tables.py::test_memory_does_not_grow", None),
    ("test_threads.py::test_a_child_and_a_grandchild", "[used]"),
    ("test_threads.py::test_concurrent_callers_abort", "[default]"),
    ("test_warmup.py::test_training_compiles_nothing_afterwards", "[float32"),
)
LONG_WITH = (
    ("test_cli_files.py::test_normalize", "uint8"),
    ("test_dask.py::test_masked_moments", "-numpy]"),
    ("test_dask.py::test_moments_and_normalizing_of_every_type", "[bfloat16]"),
    ("test_forks.py::test_a_pool_of_processes", "[forkserver]"),
    ("test_halves.py::test_moments_are_those_of_the_same", "[large"),
    ("test_halves.py::test_moments_of_bytes", "[large HWC]"),
    ("test_hostile_files.py::test_pipes", "[matplotlib]"),
    ("test_interop_onnx_activations.py::test_the_layer_does", "[HardSwish]"),
    ("test_interop_onnx_activations.py::test_the_layer_does", "[Mish]"),
    ("test_interop_safetensors.py::test_a_file_with_flipped", "[a]"),
    ("test_nonfinite.py::test_a_channel_depends_on_its_own_values_alone[True-", "float64"),
    ("test_nonfinite.py::test_a_channel_depends_on_its_own_values_alone[True-", "shape6"),
    ("test_readme.py::test_python_blocks_run", "[mathematics_activations.md]"),
    ("test_readme.py::test_python_blocks_run", "[tables.md]"),
    ("test_robustness.py::test_arrays_from_a_pickle", "float64"),
    ("test_standardizer.py::test_half_types_are_computed", "-bfloat16]"),
    ("test_standardizer_dask.py::test_fit_and_transform", "float16"),
    ("test_sync.py", "'activation'"),
    ("test_sync.py::test_half_types", "[bfloat16]"),
)


# The files that take longest: they begin, so that at the end no core waits for the other one's last file.
SLOWEST = (
    "test_interpreted.py",
    "test_fused.py",
    "test_cache.py",
    "test_combinations.py",
    "test_nopython.py",
    "test_environment.py",
    "test_activations.py",
    "test_mask.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at -m
def pytest_collection_modifyitems(config, items):
    order = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))  # stable
    mark_long(config, items)
    if "NUMBA_DISABLE_JIT" not in os.environ:
        alone = [item for item in items if item.get_closest_marker("interpreted")]
        items[:] = [item for item in items if not item.get_closest_marker("interpreted")]
        config.hook.pytest_deselected(items=alone)


def pytest_collection_finish(session):
    """Leave what is there by now out of every garbage collection: it stays until the end."""
    gc.freeze()


def mark_long(config, items):
    marked, files = set(), set()
    for item in items:
        name = item.nodeid
        files.add(item.path.name)
        rules = [rule for rule in LONG_BUT_FOR if rule[0] in name]
        slow = [rule for rule in rules if rule[1] is None or rule[1] not in name]
        slow += [rule for rule in LONG_WITH if rule[0] in name and rule[1] in name]
        marked.update(slow)
        if slow:
            item.add_marker(pytest.mark.long)
    if is_run_of_all(config):  # a rule outlives the name of its test; a file whose peer is absent is not there
        there = [rule for rule in (*LONG_BUT_FOR, *LONG_WITH) if rule[0].split("::")[0] in files]
        idle = [rule for rule in there if rule not in marked]
        assert not idle, f"these rules mark no test: {idle}"


def is_run_of_all(config):
    return config.args_source is config.ArgsSource.TESTPATHS and not config.option.keyword


@pytest.hookimpl(tryfirst=True)  # before xdist's, which reads these options
def pytest_cmdline_main(config):
    """Take every core for a run of all tests, unless told otherwise; for a few, one process is faster."""
    option = config.option
    is_open = getattr(option, "numprocesses", "no xdist") is None and option.dist == "no"
    is_plain = not (option.collectonly or option.usepdb or hasattr(config, "workerinput"))
    if is_run_of_all(config) and is_open and is_plain:
        option.numprocesses, option.dist = "auto", "loadfile"
        option.loadscopereorder = False


def pytest_sessionstart(session):
    """Compile before the workers start: else each of them would compile the same."""
    if session.config.getoption("dist", "no") == "no":  # one process, or a worker
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line("compiling what most tests need, where it is not kept from an earlier run")
    with ThreadPoolExecutor(len(session.config.option.tx)) as pool:
        for done in pool.map(warm_up, WARMUPS):
            if done.returncode:  # the tests go on, and say more
                reporter.write_line(f"{' '.join(done.args[1:])} failed:\n{done.stderr}", red=True)


def warm_up(options):
    command = [sys.executable, "-m", "nbbn", "warmup", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)
