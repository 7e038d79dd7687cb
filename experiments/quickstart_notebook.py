"""The main job as a notebook, made from the script and executed.

Every code cell comes from `experiments.quickstart`: a stage's method becomes a function of
the job, and the line of `Job.run` that calls it stands below. So the notebook cannot say
anything else than the script does; a test compares them.

    python -m experiments.quickstart_notebook                5 to 7 minutes, two cores
    python -m experiments.quickstart_notebook --quick        under a minute, to try the machinery

Needs what `pip install '.[docs]'` brings. Writes docs/main-job-notebook.ipynb, or `--output`.
"""

import argparse
import ast
import base64
import inspect
import io
import pathlib
import re
import sys
import textwrap

import nbformat
from nbformat import v4
from PIL import Image

from experiments import quickstart

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "main-job-notebook.ipynb"
FOLDER = "results/notebook"
SETUP = f"""\
import os
import pathlib
import sys

here = pathlib.Path.cwd()
root = next(folder for folder in (here, *here.parents) if (folder / "experiments").is_dir())
os.chdir(root)
sys.path.insert(0, str(root))
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

{{imports}}
from IPython.display import Image

from experiments.quickstart import BATCH, QUICK, Config, Job

config = {{config}}
job = Job(config, pathlib.Path("{FOLDER}"), None, None)
job.console = Console(force_jupyter=False)  # plain lines
"""
SHOWN = {  # what to look at after a stage
    "tune": ['Image(job.output / "search.png")'],
    "finish": [
        'pd.DataFrame(job.rows).set_index("stage")',
        'Image(job.output / "pictures.png")',
        'Image(job.output / "training.png")',
    ],
}


def build(config: str = "Config()") -> nbformat.NotebookNode:
    """Returns the notebook without outputs.

    Args:
        config: The expression of the settings: ``"Config()"`` or ``"QUICK"``.
    """
    cells = [v4.new_markdown_cell(_introduction()), v4.new_code_cell(_setup(config))]
    for name, code in _stages():
        if name:
            cells.append(v4.new_markdown_cell("## " + _summary(name)))
        cells.append(v4.new_code_cell(code))
        cells += [v4.new_code_cell(each) for each in SHOWN.get(name, [])]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # nbformat draws them by chance
    return v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
    )


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Runs the cells in a kernel of their own and returns the notebook with what came out."""
    from nbclient import NotebookClient

    NotebookClient(
        notebook, timeout=3600, resources={"metadata": {"path": str(ROOT)}}, record_timing=False
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(filter(None, map(_tidy, cell.outputs)))
    return notebook


def code_cells(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns the source of a notebook's code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def main(arguments: list[str] | None = None) -> int:
    """Writes the executed notebook and returns the process's exit code."""
    parser = argparse.ArgumentParser(description="Make the main job's notebook from its script and run it.")
    parser.add_argument("--quick", action="store_true", help="the job's small run, under a minute")
    parser.add_argument("--output", type=pathlib.Path, default=NOTEBOOK, metavar="FILE")
    options = parser.parse_args(arguments)
    notebook = execute(build("QUICK" if options.quick else "Config()"))
    nbformat.write(notebook, options.output)
    print(f"{options.output}, {options.output.stat().st_size / 1000:.0f} kB")
    return 0


def _tidy(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """Returns an output without TensorFlow's notes and progress bars, None if nothing is left."""
    if output.output_type == "stream":
        lines = [line for line in output.text.splitlines() if not line.startswith("INFO:tensorflow")]
        output.text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(lines) + "\n")  # colours
        return output if lines and output.name == "stdout" else None
    if output.output_type == "display_data":
        return None
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = _smaller(output.data["image/png"])
    return output


def _smaller(png: str) -> str:
    """Returns a picture in 256 colours."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _introduction() -> str:
    question, _, rest = inspect.getdoc(quickstart).partition("\n")
    paragraph = rest.strip().split("\n\n")[0]
    return (
        f"# {question}\n\n{paragraph}\n\n"
        "The cells are the stages of `experiments/quickstart.py`. Open the notebook in a clone of the "
        "repository, with the package and Jupyter installed. With `config = QUICK` in the first cell all "
        f"takes less than a minute. Files go to `{FOLDER}`. Seconds and latencies are those of the run that "
        "made this file."
    )


def _setup(config: str) -> str:
    """Returns the first cell: the script's own imports, and the job."""
    tree = ast.parse(inspect.getsource(quickstart))
    known = {"os", "pathlib", "sys", "argparse"}
    imports = [
        ast.unparse(each)
        for each in tree.body
        if isinstance(each, ast.ImportFrom)
        or (isinstance(each, ast.Import) and each.names[0].name not in known)
    ]
    return SETUP.format(imports="\n".join(imports), config=config).rstrip()


def _stages() -> list[tuple[str | None, str]]:
    """Returns the lines of `Job.run` in cells; a stage's function stands above its first call."""
    source = textwrap.dedent(inspect.getsource(quickstart.Job.run))
    lines = source.splitlines()
    cells: list[tuple[str | None, list[str]]] = []
    seen: set[str] = set()
    for statement in ast.parse(source).body[0].body[1:]:  # without the docstring
        text = textwrap.dedent("\n".join(lines[statement.lineno - 1 : statement.end_lineno]))
        new = [each for each in re.findall(r"self\.([a-z]\w*)\(", text) if each not in seen]
        seen.update(new)
        if new or not cells:
            functions = [_as_function(each) for each in new]
            cells.append((new[0] if new else None, functions))
        cells[-1][1].append(_of_job(text))
    return [(name, "\n".join(parts)) for name, parts in cells]


def _as_function(name: str) -> str:
    return _of_job(textwrap.dedent(inspect.getsource(getattr(quickstart.Job, name)))) + "\n"


def _of_job(source: str) -> str:
    """Returns a method's source as a function's: `self.stage(…)` becomes `stage(job, …)`."""
    source = re.sub(r"self\.([a-z]\w*)\(\)", r"\1(job)", source)
    source = re.sub(r"self\.([a-z]\w*)\((?=\S)", r"\1(job, ", source)
    return re.sub(r"\bself\b", "job", source)


def _summary(name: str) -> str:
    return inspect.getdoc(getattr(quickstart.Job, name)).splitlines()[0].rstrip(".")


if __name__ == "__main__":
    sys.exit(main())
