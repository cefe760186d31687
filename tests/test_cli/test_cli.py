"""The commands: exit statuses, where text goes, and the progress bar."""

import errno
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nbbn
from nbbn.cli import _build_parser, _progress, demo, info, main
from nbbn.cli._files import CommandError
from nbbn.cli._progress import Progress


def run_module(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "nbbn", *arguments],
        text=True,
        timeout=300,
        check=False,
        **options,
    )


def test_info_prints_the_configuration(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr()
    nbbn.show_config()
    assert printed.out == capsys.readouterr().out
    assert nbbn.__version__ in printed.out
    assert printed.err == ""


def test_python_m_nbbn_is_the_same_program():
    done = run_module("--version", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"nbbn {nbbn.__version__}\n", "")
    done = run_module("info", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert nbbn.__version__ in done.stdout


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nbbn {nbbn.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *[[name, "--help"] for name in ("demo", "info", "normalize", "moments")]],
)
def test_help_goes_to_standard_output(arguments, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("usage: nbbn")
    assert printed.err == ""


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n    {name}" not in listed] == []


COMMANDS = ("demo", "normalize", "moments", "bench", "info", "warmup")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_is_understood(command, capsys):
    assert main([command, "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    example = re.search(r"example: nbbn ([^()]+)", printed)[1]
    assert printed.endswith((example, ")"))
    assert _build_parser().parse_args(shlex.split(example)).command == command


def test_no_command_prints_the_help_and_fails(capsys):
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: nbbn")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "nonsense"),
        (["--nonsense"], "--nonsense"),
        (["info", "--nonsense"], "--nonsense"),
        (["demo", "--epochs"], "--epochs"),
        (["demo", "--epochs", "0"], "at least 1, got 0"),
        (["demo", "--epochs", "two"], "whole number, got 'two'"),
        (["demo", "--seed", "-1"], "not be negative, got -1"),
        (["demo", "--ep", "1"], "--ep"),
        (["normalize", "in.npy"], "OUT"),
        (["moments"], "IN"),
        (["moments", "in.npy", "--axis", "two"], "'two'"),
    ],
)
def test_bad_usage_is_one_line_on_standard_error(arguments, expected, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("nbbn")
    assert expected in printed.err
    assert "--help" in printed.err


def test_bad_input_is_one_line_on_standard_error(capsys, monkeypatch):
    def run(arguments):
        raise CommandError("the file is empty")

    monkeypatch.setattr(info, "run", run)
    assert main(["info"]) == 2
    assert capsys.readouterr() == ("", "nbbn info: error: the file is empty\n")


def test_a_mistake_in_the_code_is_not_hidden(monkeypatch):
    def run(arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(info, "run", run)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_ctrl_c(capsys, monkeypatch):
    def run(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo"]) == 130
    assert capsys.readouterr() == ("", "nbbn: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe in another way")
@pytest.mark.parametrize("arguments", [["info"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        # Unbuffered, argparse itself would meet the closed pipe, and keep silent about it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        done = run_module(*arguments, stdout=writer, stderr=subprocess.PIPE, env=environment)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="a shell closes streams")
@pytest.mark.parametrize(
    ("redirected", "status", "error"),
    [
        ("info >&-", 0, ""),
        ("info >/dev/full", 2, "nbbn: error: cannot write to standard output: No space left on device\n"),
        ("info 2>&-", 0, ""),
        ("moments none.npy 2>&-", 2, ""),
        ("moments none.npy 2>/dev/full", 2, ""),
        ("nonsense 2>/dev/full", 2, ""),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(redirected, status, error):
    if "/dev/full" in redirected and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    command = [shutil.which("sh"), "-c", f'exec "$0" -m nbbn {redirected}', sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (status, error)
    assert done.stdout == "" or redirected == "info 2>&-"


@pytest.mark.parametrize("arguments", [["moments", "no\nne\x1b[1m.npy"], ["info", "no\nne\x1b[1m"]])
def test_a_message_is_one_line_whatever_a_file_is_called(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert r"no\nne\x1b[1m" in error


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = "import sys, nbbn.cli; print({'sklearn', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "set()\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True

    def drawings(self):
        return [line.rstrip() for line in self.getvalue().split("\r")]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_progress, "time", clock)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    return clock


def test_no_bar_where_there_is_no_terminal():
    stream = io.StringIO()
    with Progress(3, "Counting", stream=stream) as progress:
        progress.advance(3)
    assert stream.getvalue() == ""


def test_bar_on_a_terminal(clock):
    terminal = Terminal()
    with Progress(4, "Counting", stream=terminal) as progress:
        clock.now += 30
        progress.advance()
        clock.now += 30
        progress.advance(3)
    empty, half, full = "." * 30, "#" * 8 + "." * 22, "#" * 30
    assert terminal.drawings() == [
        "",
        f"Counting [{empty}]   0%",
        f"Counting [{half}]  25%, 1 min 30 s left",
        f"Counting [{full}] 100%",
        "",
        "",
    ]


def test_bar_of_bytes_shows_their_rate(clock):
    terminal = Terminal()
    with Progress(400_000_000, "Reading", in_bytes=True, stream=terminal) as progress:
        clock.now += 0.5
        progress.advance(100_000_000)
        clock.now += 0.5
        progress.advance(300_000_000)
    empty, half, full = "." * 30, "#" * 8 + "." * 22, "#" * 30
    assert terminal.drawings() == [
        "",
        f"Reading [{empty}]   0%",
        f"Reading [{half}]  25%, 200 MB/s, 2 s left",
        f"Reading [{full}] 100%, 400 MB/s",
        "",
        "",
    ]


def test_bar_is_drawn_ten_times_a_second_at_most(clock):
    terminal = Terminal()
    with Progress(1000, "Counting", stream=terminal) as progress:
        for _ in range(1000):
            clock.now += 0.001
            progress.advance()
    assert len(terminal.drawings()) <= 1 + 1 + 10 + 2


def test_bar_fits_a_narrow_terminal(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    terminal = Terminal()
    with Progress(4, "Counting", stream=terminal) as progress:
        clock.now += 1
        progress.advance()
    assert max(map(len, terminal.getvalue().split("\r"))) == 19


def test_bar_of_no_steps(clock):
    terminal = Terminal()
    with Progress(0, "Counting", stream=terminal):
        pass
    assert terminal.drawings()[1].endswith("100%")


def test_bar_is_wiped_after_an_error(clock):
    terminal = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(4, "Counting", stream=terminal):
        raise KeyboardInterrupt
    assert terminal.drawings()[-2:] == ["", ""]


def test_work_goes_on_where_the_terminal_has_gone(clock):
    class Gone(Terminal):
        def flush(self):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    terminal = Gone()
    with Progress(4, "Counting", stream=terminal) as progress:
        clock.now += 1
        progress.advance(4)
    assert progress.done == 4
    assert len(terminal.drawings()) == 2  # it is tried once


def test_no_bar_where_standard_error_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with Progress(1, "Counting") as progress:
        progress.advance()
    assert progress.done == 1


def test_bar_goes_to_standard_error(clock, capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(1, "Counting") as progress:
        progress.advance()
    assert "Counting" in terminal.getvalue()
    assert capsys.readouterr().out == ""
