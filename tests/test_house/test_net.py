"""The net: the same bits from any number of threads and in another process, and a net that tells what changed."""

import functools
import shutil
import subprocess

import net
import net_cases
import numpy as np
import pytest

import nbbn

# Few of the cases, whose kernels other tests compile as well: runs and columns, small and large.
QUICK = r"^(?!sums|sync|nopython).*float32 \| (nchw|nc|large nchw|large nc, some) \| plain"
MOMENTS = r"^moments \| float32 \| nc \| plain"

# What a planted change does: a mean is off by one unit in its last place.
PLANTED = """
import numpy
def batch_moments(*given, __right=batch_moments, **options):
    found = __right(*given, **options)
    return Moments(found.count, numpy.nextafter(found.mean, numpy.inf), found.m2)
"""


def recorded(pattern, *arguments, environment="native"):
    """In a process of its own."""
    process = net.start(net.HERE, environment, "--cases", pattern, *arguments)
    return net.result(process, net.HERE)


def test_one_thread_several_and_another_process_give_the_same_bits():
    one = net.record(QUICK, threads=1)
    assert one == net.record(QUICK, threads=4) == recorded(QUICK, "--threads", "3")
    assert {kind for kind, _ in one.values()} == set(net.KINDS)
    assert {name.split(" | ")[-1] for name in one} == {"serial", "parallel", "streamed"}


def test_interpreted_results_are_the_same_in_another_process():
    first, second = (recorded(MOMENTS, "--tiny", environment="interpreted") for _ in range(2))
    assert first == second and len(first) > 10


def test_every_case_works_but_for_options_that_there_are_not():
    """Interpreted and on one small layout, as that takes no compiler."""
    found = recorded(r"float32 \| nc \| (?!residual ).*serial", "--tiny", environment="interpreted")
    raised = [name for name, (kind, _) in found.items() if kind == net.RAISED]
    unknown = ("silu", "mish", "prelu", "virtual batches", "sums |")
    assert [name for name in raised if not any(word in name for word in unknown)] == []
    assert {name.split(".")[0] for name in found if name not in raised} >= {
        *("inference", "train", "moments", "standardizer", "nopython", "sync")
    }


def test_one_bit_of_one_value_is_told(monkeypatch, capsys):
    pattern = r"^inference \| float32 \| (nc|nchw) \| plain"
    before, right = net.record(pattern), nbbn.normalize

    @functools.wraps(right)
    def off_by_one(x, *given, **options):
        y = right(x, *given, **options)
        if x.ndim == 2:
            y[3, 1] = np.nextafter(y[3, 1], np.float32(np.inf))
        return y

    monkeypatch.setattr(nbbn, "normalize", off_by_one)
    told = net.compare(before, net.record(pattern))
    name = "inference.normalize | float32 | nc | plain | serial"
    assert told == {"changed": {"inference": [name]}}
    total = {"inference": len(before)}
    assert net.tell(told, total, net.KINDS)
    assert "inference.normalize float32 (1): nc, plain, serial" in capsys.readouterr().out
    assert not net.tell(told, total, ["moments", "training"])
    assert "which may" in capsys.readouterr().out


@pytest.mark.parametrize("layout", [*net_cases.STREAMED, *net_cases.GAPS])
def test_what_is_said_to_be_streamed_is(layout):
    case = net_cases.Case(layout, "float32", "plain")
    with net_cases.stream_anything():
        for operation in ("inference", "training", "backward"):
            assert "past the cache" in nbbn.explain(case.x, operation, axis=case.axis)


def test_what_raises_is_lost_or_new():
    raised, works = {"f | a": [net.RAISED, "ValueError"]}, {"f.y | a": ["training", "0"]}
    assert net.compare(works, raised) == {
        "lost": {"training": ["f.y | a"], net.RAISED: ["f | a"]},
    }
    assert net.compare(raised, works) == {
        "new": {net.RAISED: ["f | a"], "training": ["f.y | a"]},
    }
    assert net.compare(raised, raised) == {"raises in both": {net.RAISED: ["f | a"]}}
    assert net.compare(works, works) == {}


def test_kinds_of_nan_are_one_and_zeros_are_two():
    quiet = np.array([0x7FC00001, 0xFFC00000], np.uint32).view(np.float32)
    assert net.digest(quiet) == net.digest(np.full(2, np.nan, np.float32))
    assert net.digest(np.array([0.0])) != net.digest(np.array([-0.0]))
    assert net.digest(np.ones((2, 3))) != net.digest(np.ones((2, 3), order="F"))


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_revision_and_a_planted_change(tmp_path, monkeypatch, capsys):
    shutil.copytree(net.HERE / "nbbn", tmp_path / "nbbn")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "core.hooksPath=/dev/null"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "as it was"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(net, "HERE", tmp_path)
    arguments = ["HEAD", "--only", "interpreted", "--cases", MOMENTS]
    assert net.main(arguments) == 0
    with (tmp_path / "nbbn" / "__init__.py").open("a") as file:
        file.write(PLANTED)
    assert net.main(arguments) == 1
    assert "moments.batch_moments mean float32 (1): nc, plain, serial" in capsys.readouterr().out
    assert net.main([*arguments, "--keep", "inference"]) == 0
    with pytest.raises(SystemExit) as caught:
        net.main([*arguments[:3], "--cases", "no such case"])
    assert caught.value.code == 2
    listed = subprocess.run(["git", "worktree", "list"], cwd=tmp_path, capture_output=True)
    assert len(listed.stdout.splitlines()) == 1


@pytest.mark.parametrize("wrong", [[], ["no/such/revision"], ["HEAD", "--cases", "("]])
def test_usage(wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        net.main(wrong)
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err
