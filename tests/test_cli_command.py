"""What all commands share: exit codes, errors in one paragraph, options that are read before work begins."""

import subprocess
import sys
import warnings

import click
import pandas as pd
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

import tfkit
from tests.cli_calls import call, leaves, shell
from tfkit.cli import command, main
from tfkit.cli.command import Command, echo_json, echo_table
from tfkit.cli.kinds import BatchSize, Fraction, Pair, Shape, Targets
from tfkit.export.deployment import TARGETS


def failing(error):
    @click.command(cls=Command)
    def some():
        raise error

    return some


# Errors and exit codes.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (tfkit.ArgumentError("rule"), 2),
        (tfkit.ArgumentTypeError("rule"), 2),
        (tfkit.UnsafeModelError("rule"), 2),
        (tfkit.OutputPathError("rule"), 2),
        (tfkit.ExportError("rule"), 1),
        (tfkit.ParityError("rule"), 1),
        (tfkit.SearchError("rule"), 1),
    ],
    ids=lambda each: type(each).__name__,
)
def test_an_error_says_by_its_code_whether_the_call_was_wrong(error, code):
    done = CliRunner().invoke(failing(error))
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", "error: rule\n")


def test_an_error_of_several_lines_becomes_one_paragraph():
    done = CliRunner().invoke(failing(tfkit.ExportError("one\n  two\n\nthree")))
    assert done.stderr == "error: one two three\n"


def test_an_error_that_nobody_foresaw_has_no_traceback_either():
    done = CliRunner().invoke(failing(KeyError("x")))
    assert done.exit_code == 1
    assert done.stderr == "error: KeyError: 'x' (not foreseen; --debug shows where it arose)\n"


@pytest.mark.parametrize("error", [tfkit.ArgumentError("rule"), KeyError("x")], ids=repr)
def test_debug_lets_the_error_through(error):
    assert CliRunner().invoke(failing(error), ["--debug"]).exception is error


def test_advice_names_the_commands_options_and_no_others():
    @click.command(cls=Command)
    @click.option("--over-write", is_flag=True)
    @click.option("--shape")
    def some(**_):
        raise tfkit.ArgumentError("Pass over_write=True. Pass shape=(a, b). Pass other=True.")

    done = CliRunner().invoke(some)
    assert done.stderr == "error: Pass --over-write. Pass --shape a,b. Pass other=True.\n"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("`max_ratio` is high. Received: max_ratio=2.", "`--max-ratio` is high. Received: --max-ratio 2."),
        ("Lower max_ratio. Its max_ratios stay.", "Lower --max-ratio. Its max_ratios stay."),
        ("Received: layers=['*', '!a'], kept=False.", "Received: --layers '*' --layers '!a', --no-kept."),
        ("Received: m_by_n=(2, 4), max_ratio=None.", "Received: --m-by-n 2,4, no --max-ratio."),
        ("Received: source='a b.keras'. Pass it.", "Received: MODEL 'a b.keras'. Pass it."),
        ("`source` of source='a.keras' is none.", "`MODEL` of MODEL a.keras is none."),
        ("Call tfkit.some(model, max_ratio=0.5).", "Call tfkit.some(model, max_ratio=0.5)."),
        ("Use layers= and max_ratio= here.", "Use --layers and --max-ratio here."),
    ],
)
def test_messages_of_the_library_speak_of_options(said, shown):
    @click.command(cls=Command, words={"source": "model"})
    @click.argument("model", required=False)
    @click.option("--max-ratio")
    @click.option("--m-by-n")
    @click.option("--layers", multiple=True)
    @click.option("--kept/--no-kept")
    def some(**_):
        raise tfkit.ArgumentError(said)

    assert CliRunner().invoke(some).stderr == f"error: {shown}\n"


def test_a_warning_is_a_paragraph_in_the_commands_words():
    @click.command(cls=Command)
    @click.option("--max-ratio")
    def some(**_):
        warnings.simplefilter("always")
        warnings.warn("Lower\n max_ratio.", stacklevel=1)

    assert CliRunner().invoke(some).stderr == "warning: Lower --max-ratio.\n"


def test_an_exit_code_of_a_command_stays():
    @click.command(cls=Command)
    @click.pass_context
    def some(context):
        context.exit(7)

    assert CliRunner().invoke(some).exit_code == 7


@pytest.mark.parametrize("words", sorted(leaves()), ids=" ".join)
def test_every_command_has_help_debug_and_exit_codes(words):
    done = call(*words, "--help")
    assert done.exit_code == 0
    assert "--debug" in done.output
    assert "--json" in done.output
    assert "Exit codes: 0" in done.output


@pytest.mark.slow
def test_a_shell_sees_the_exit_codes(tmp_path):
    (tmp_path / "torn.tflite").write_bytes(b"\0\0\0\0TFL3" + b"\0" * 64)
    helped, wrong, failed = shell("--help"), shell("bench", "none"), shell("bench", tmp_path / "torn.tflite")
    assert [done.returncode for done in (helped, wrong, failed)] == [0, 2, 1]
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""


def test_help_loads_nothing_heavy():
    code = """
import sys
from tfkit.cli import main
main(["--help"], standalone_mode=False)
print({"keras", "matplotlib", "numpy", "pandas", "tensorflow"} & {*sys.modules})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")


# Kinds of options.


def test_the_targets_are_those_of_the_library():
    assert Targets.known == TARGETS


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Targets(), "mobile", ("mobile",)),
        (Targets(), "web, mobile,web", ("web", "mobile")),
        (Shape(), "224,224,3", (224, 224, 3)),
        (Shape(), "none, none,3", (None, None, 3)),
        (Shape(), "7", (7,)),
        (Pair(), "2,4", (2, 4)),
        (Pair(), " 2 : 4", (2, 4)),
        (Fraction(), "0.5", 0.5),
        (Fraction(zero=True), "0", 0.0),
        (Fraction(counts=True), "2e6", 2e6),
        (BatchSize(), "4", 4),
        (BatchSize(), "open", 0),
    ],
)
def test_options_are_read(kind, text, value):
    assert kind.convert(text, None, None) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            Targets(),
            "mobil",
            "'mobil' is no target. Did you mean mobile? There are: desktop",
        ),
        (Targets(), "xyz", "'xyz' is no target. There are"),
        (Targets(), " , ", "at least one of desktop"),
        (Shape(), "224,0,3", "'224,0,3' is no shape; write it as 224,224,3"),
        (Shape(), "", "is no shape"),
        (Pair(), "2", "'2' is no pair"),
        (Pair(), "0,4", "is no pair of numbers from 1"),
        (Fraction(), "0", "0 is no fraction"),
        (Fraction(), "30", "30 is no fraction below 1; write 0.3 for 30%"),
        (Fraction(), "nan", "nan is no fraction"),
        (Fraction(counts=True), "inf", "no fraction below 1 and no count"),
        (BatchSize(), "0", "neither a number from 1 nor 'open'"),
        (BatchSize(), "-1", "neither a number from 1 nor 'open'"),
    ],
)
def test_options_that_cannot_be_read_are_refused(kind, text, message):
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(text, None, None)
    assert message in caught.value.message


# Completion by a shell.


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "a.keras",
        "b.tflite",
        "c.npy",
        "n.txt",
        ".hidden.keras",
        "inner/d.keras",
        "plain/e.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def completed(*words):
    *before, last = words
    found = ShellComplete(main, {}, "tfkit", "_TFKIT_COMPLETE").get_completions(before, last)
    return [each.value for each in found]


def test_a_shell_completes_commands_and_choices():
    assert completed("prune", "") == ["channels", "magnitude"]
    assert completed("prune", "channels", "--criterion", "l") == ["l2", "l1"]


def test_a_shell_completes_files_of_the_right_kind(folder):
    assert completed("export", "") == ["a.keras", "inner/", "plain/"]
    assert completed("inspect", "") == ["a.keras", "b.tflite", "inner/", "plain/"]
    assert completed("export", "a.keras", "out", "--data", "c") == ["c.npy"]
    assert completed("prune", "magnitude", "inner/") == ["inner/d.keras"]
    assert completed("prune", "magnitude", f"{folder}/a") == [f"{folder}/a.keras"]


@pytest.mark.parametrize("begun", ["plain/", "n", "nowhere/x"])
def test_where_no_such_file_is_the_shell_has_its_own_way(folder, begun):
    (item,) = ShellComplete(main, {}, "tfkit", "_TFKIT_COMPLETE").get_completions(["export"], begun)
    assert (item.type, item.value) == ("file", begun)


@pytest.mark.parametrize(
    ("begun", "names"),
    [
        ("", ["desktop", "gpu", "mobile", "web"]),
        ("m", ["mobile"]),
        ("mobile,", ["mobile,desktop", "mobile,gpu", "mobile,web"]),
        ("web,gpu,d", ["web,gpu,desktop"]),
        ("x", []),
    ],
)
def test_a_shell_completes_targets_also_after_commas(begun, names):
    assert completed("export", "a.keras", "out", "--targets", begun) == names


# Printing.


def test_a_table_is_printed_whole(capsys):
    echo_table(pd.DataFrame({"name": ["a" * 200, "b"], "MB": ["1.5", "10"], "x": [None, "y"]}))
    assert capsys.readouterr().out.splitlines() == [
        f"{'name':200}   MB  x",
        f"{'a' * 200}  1.5",
        f"{'b':200}   10  y",
    ]


def test_numbers_that_are_none_become_null(capsys):
    echo_json({"a": float("nan"), "b": [1, 2.5, True, None], "c": (float("inf"), "x")})
    assert capsys.readouterr().out == '{"a": null, "b": [1, 2.5, true, null], "c": [null, "x"]}\n'


def test_missing_cells_of_a_table_become_null():
    table = pd.DataFrame({"a": [1.5, float("nan")], "b": pd.array([1, None], "Int64")})
    assert command.records(table) == [{"a": 1.5, "b": 1}, {"a": None, "b": None}]
