"""The notebook of the main job is what its script says today."""

import ast
import inspect

import nbformat

from experiments import quickstart, quickstart_notebook


def test_the_code_is_the_scripts():
    notebook = nbformat.read(quickstart_notebook.NOTEBOOK, 4)
    assert quickstart_notebook.code_cells(notebook) == quickstart_notebook.code_cells(
        quickstart_notebook.build()
    )


def test_every_stage_has_its_function_and_its_call():
    code = "\n".join(quickstart_notebook.code_cells(quickstart_notebook.build()))
    tree = ast.parse(code)
    functions = {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
    stages = {name for name, _ in inspect.getmembers(quickstart.Job, inspect.isfunction) if name[0] != "_"}
    assert functions == stages - {"run"}
    called = {
        node.func.id
        for each in tree.body
        if not isinstance(each, ast.FunctionDef)
        for node in ast.walk(each)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert functions <= called
    assert "self" not in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_it_was_executed_whole_and_without_an_error():
    cells = [
        cell for cell in nbformat.read(quickstart_notebook.NOTEBOOK, 4).cells if cell.cell_type == "code"
    ]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert "error" not in {output.output_type for output in outputs}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert quickstart_notebook.NOTEBOOK.stat().st_size < 1_000_000
