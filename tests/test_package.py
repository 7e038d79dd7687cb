"""The package as a whole: what importing it costs, what it names, and which errors it raises."""

import importlib
import inspect
import pathlib
import re
import resource
import subprocess
import sys
import types

import pytest

import tfkit
from tfkit import errors

HEAVY = (
    *("tensorflow", "keras", "tf_keras", "keras_tuner", "tensorflow_model_optimization"),
    *("matplotlib", "pandas"),
)
ERRORS = [each for _, each in inspect.getmembers(errors, inspect.isclass)]


def run(code):
    """Runs code in a fresh interpreter and returns what it prints."""
    root = pathlib.Path(tfkit.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "import tfkit",
        "from tfkit import curves",
        "import tfkit; tfkit.curves",
        "from tfkit import errors, ArgumentError",
        "import tfkit; dir(tfkit), tfkit.__all__, tfkit.__version__",
    ],
)
def test_importing_loads_neither_tensorflow_nor_keras(statement):
    loaded = run(f"{statement}\nimport sys; print(*(m for m in {HEAVY!r} if m in sys.modules))")
    assert loaded == ""


def test_curves_work_where_tensorflow_and_keras_cannot_be_imported():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HEAVY!r}))  # None makes an import fail
from tfkit import curves
print(curves.linear(1.0, 0.0, 4)(1))
"""
    assert float(run(code)) == 0.75


def processor_seconds(code):
    """The least of three fresh interpreters; the wall clock would count what else runs here."""

    def once():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


def test_importing_takes_no_time_to_speak_of():
    assert processor_seconds("import tfkit") - processor_seconds("pass") < 0.2


def test_the_help_of_the_command_line_comes_at_once():
    assert processor_seconds("from tfkit.cli import main; main(['--help'])") < 0.3


# --- names -------------------------------------------------------------------------------------


def test_the_public_names_are_sorted():
    assert list(tfkit.__all__) == sorted(tfkit.__all__)


def test_the_public_names_are_unique():
    assert len(tfkit.__all__) == len(set(tfkit.__all__))


def test_dir_lists_the_public_names():
    assert set(tfkit.__all__) <= set(dir(tfkit))


@pytest.mark.parametrize("name", tfkit.__all__)
def test_every_public_name_resolves(name):
    assert getattr(tfkit, name) is not None


@pytest.mark.parametrize("name", tfkit.__all__)
def test_every_public_name_has_a_docstring(name):
    assert (inspect.getdoc(getattr(tfkit, name)) or "").strip()


@pytest.mark.parametrize("name", tfkit.__all__)
def test_every_public_name_of_our_own_has_an_example(name):
    value = getattr(tfkit, name)
    ours = getattr(value, "__module__", "").startswith("tfkit")  # TFMOT's schedules are TFMOT's
    is_error = inspect.isclass(value) and issubclass(value, Exception)
    if ours and not is_error and not isinstance(value, types.ModuleType):
        assert re.search(r"Examples:\n\s*>>> ", inspect.getdoc(value))


MODULES = [name for name in tfkit.__all__ if isinstance(getattr(tfkit, name), types.ModuleType)]
MODULES.remove("errors")  # whose names are tfkit's own


@pytest.mark.parametrize("module", MODULES)
def test_every_name_that_a_public_module_lists_resolves(module):
    loaded = importlib.import_module(getattr(tfkit, module).__name__)
    for name in loaded.__all__:
        assert getattr(loaded, name) is not None


@pytest.mark.parametrize("module", MODULES)
def test_the_names_of_a_public_module_are_sorted(module):
    names = list(getattr(tfkit, module).__all__)
    assert names == sorted(names)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        tfkit.no_such_name  # noqa: B018


def test_the_version_has_three_numbers():
    assert re.fullmatch(r"\d+\.\d+\.\d+", tfkit.__version__)


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_a_tfkit_error(error):
    assert issubclass(error, errors.TfkitError)


@pytest.mark.parametrize(
    "error", [each for each in ERRORS if each is not errors.TfkitError], ids=lambda error: error.__name__
)
def test_every_error_is_a_builtin_exception_too(error):
    builtin = [base for base in error.__mro__ if base.__module__ == "builtins"]
    assert set(builtin) - {Exception, BaseException, object}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_can_be_raised_with_a_message_and_caught_as_tfkit_error(error):
    with pytest.raises(errors.TfkitError, match=r"^the message$"):
        raise error("the message")


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_a_public_name(error):
    assert getattr(tfkit, error.__name__) is error
    assert error.__name__ in tfkit.__all__


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes():
    drawn, above = {}, ["TfkitError"]
    line = re.compile(r"^([ │├└─]+)(\w+Error)(?: \((\w+)\))?", re.MULTILINE)
    for branch, name, builtin in line.findall(inspect.getdoc(errors)):
        depth = len(branch) // 4 - 1  # the tree itself is indented by four
        above = [*above[:depth], name]
        drawn[name] = {above[depth - 1], builtin} - {""}
    defined = {each.__name__: {base.__name__ for base in each.__bases__} for each in ERRORS}
    assert {name: bases for name, bases in drawn.items() if name != "TfkitError"} == {
        name: bases for name, bases in defined.items() if name != "TfkitError"
    }
