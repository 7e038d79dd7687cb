"""What is told of a `.tflite` file: its operations, and whether sparse kernels take them."""

import pytest

import tfkit
from tests.export import sparse_files
from tests.export.test_signature import net


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sparse")
    model = sparse_files.cluster(pooled=False)
    return {
        "dense": sparse_files.write(model, folder / "dense", []),
        "float32": sparse_files.write(model, folder / "float32", ["EXPERIMENTAL_SPARSITY"]),
        "float16": tfkit.export_tflite(model, folder / "float16", precision="float16", sparse=True).path,
    }


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_zeros_of_sparse_encoded_weights_are_counted(sparse, name):
    table = tfkit.explain_tflite(sparse[name])
    assert table.attrs["sparse"]
    assert table.attrs["verdict"] == "sparse"
    assert set(table.runs) == {"sparse"}


def test_the_same_weights_densely_stored_run_dense(sparse):
    table = tfkit.explain_tflite(sparse["dense"])
    assert not table.attrs["sparse"]
    assert table.attrs["verdict"] == "dense"
    assert set(table.reason) == {"its weights are not sparse-encoded"}


def test_the_file_is_judged_as_its_model_was(sparse):
    model = tfkit.explain_deployment(sparse_files.cluster(pooled=False), "mobile")
    file = tfkit.explain_tflite(sparse["float32"])
    assert file.operation.tolist() == model.operation.tolist()
    assert file.runs.tolist() == model.runs.tolist()
    assert list(file.columns) == list(model.columns)


def test_the_inputs_are_told(tmp_path):
    artifact = tfkit.export_tflite(net(), tmp_path / "m.tflite", batch_size=3)
    assert tfkit.explain_tflite(artifact.path).attrs["inputs"] == ["3x6 FLOAT32"]


def test_a_file_that_crashes_its_runtime_is_an_error(sparse, tmp_path):
    far = sparse_files.far_indices(sparse["float32"], tmp_path / "far")
    with pytest.raises(tfkit.ExportError, match="must not crash its runtime"):
        tfkit.explain_tflite(far)


def test_a_saved_model_is_refused(tmp_path):
    artifact = tfkit.export_saved_model(net(), tmp_path / "m")
    with pytest.raises(tfkit.ArgumentError, match=r"must be a \.tflite file.*a SavedModel"):
        tfkit.explain_tflite(artifact.path)
