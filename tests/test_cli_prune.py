"""`tfkit prune` on files: what is in the file that it writes, what it prints, and what it refuses first."""

import re

import keras
import numpy as np
import pytest

import tfkit
from tests.cli_calls import as_json, call, refusal

SHAPE = (8, 8, 3)
RNG = np.random.default_rng(0)
X = RNG.random((40, *SHAPE), dtype="float32")
Y = np.arange(40) % 4


def net():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(16, 3, name="a"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.Conv2D(16, 3, name="b"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax", name="head"),
        ],
        name="net",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a model that has trained and one that has not, and data."""
    folder = tmp_path_factory.mktemp("prune")
    model = net()
    model.save(folder / "fresh.keras")
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, verbose=0)
    model.save(folder / "model.keras")
    np.save(folder / "x.npy", X)
    np.save(folder / "narrow.npy", X[:, :4])
    np.savez(folder / "train.npz", x=X, y=Y)
    (folder / "no.csv").write_text("a,b\n")
    (folder / "no.json").write_text("{}")
    return folder


def magnitude(files, out, *words):
    return call("prune", "magnitude", files / "model.keras", out, *words)


def channels(files, *words):
    return call("prune", "channels", files / "model.keras", *words)


def kernel(model, name):
    return np.asarray(model.get_layer(name).kernel)


# Weights to zero.


def test_the_smallest_weights_of_each_kernel_are_zero_in_the_file(files, tmp_path):
    done = magnitude(files, tmp_path / "out.keras", "--sparsity", 0.75)
    assert done.exit_code == 0, done.output
    before, after = (keras.models.load_model(x) for x in (files / "model.keras", tmp_path / "out.keras"))
    for name in ("a", "b", "head"):
        old, new = kernel(before, name), kernel(after, name)
        largest = np.sort(np.abs(old).ravel())[-round(old.size / 4) :]
        assert np.count_nonzero(new) == round(old.size / 4)
        np.testing.assert_array_equal(new, np.where(np.abs(old) >= largest[0], old, 0))
    rows = [line.split() for line in done.stdout.splitlines()[1:4]]
    assert rows == [
        ["a", "kernel", "432", "0.0%", "75.0%"],
        ["b", "kernel", "2,304", "0.0%", "75.0%"],
        ["head", "kernel", "64", "0.0%", "75.0%"],
    ]
    assert re.search(r"zeros in kernels +0\.0% +75\.0%\n", done.stdout)
    assert f"tfkit export {tmp_path / 'out.keras'} FOLDER" in " ".join(done.stdout.split())


def test_a_compiled_model_stays_so_with_what_its_optimizer_has_learned(files, tmp_path):
    magnitude(files, tmp_path / "out.keras", "--sparsity", 0.5)
    before, after = (keras.models.load_model(x) for x in (files / "model.keras", tmp_path / "out.keras"))
    assert after.loss == "sparse_categorical_crossentropy"
    for old, new in zip(before.optimizer.variables, after.optimizer.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_way_to_train_on_that_the_help_gives_holds_the_zeros(tmp_path):
    keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="d")]).save(tmp_path / "model.keras")
    words = [tmp_path / "model.keras", tmp_path / "pruned.keras", "--sparsity", 0.8]
    assert call("prune", "magnitude", *words).exit_code == 0
    told = re.search(r"\n( +model = .*?)\n\n", call("prune", "--help").output, re.DOTALL)[1]
    script = re.sub(r"^ +", "", told, flags=re.MULTILINE)
    script = script.replace("compile(...)", "compile('adam', 'mse')").replace(
        "fit(...)", "fit(X, Y, verbose=0)"
    )
    script = re.sub(r'"(\w+\.keras)"', rf'r"{tmp_path}/\1"', script)
    exec(script, {"keras": keras, "tfkit": tfkit, "X": RNG.random((64, 8)), "Y": RNG.random((64, 4))})
    pruned, trained = (keras.models.load_model(tmp_path / f"{x}.keras") for x in ("pruned", "trained"))
    assert np.count_nonzero(kernel(pruned, "d")) == np.count_nonzero(kernel(trained, "d")) == round(32 * 0.2)
    assert not np.array_equal(kernel(pruned, "d"), kernel(trained, "d"))


def test_layers_and_patterns_of_zeros(files, tmp_path):
    done = magnitude(
        files, tmp_path / "out.keras", "--sparsity-m-by-n", "2:4", "--layers", "*", "--layers", "!a", "--json"
    )
    found = as_json(done)
    model = keras.models.load_model(tmp_path / "out.keras")
    assert np.count_nonzero(kernel(model, "a")) == 432
    groups = kernel(model, "b").reshape(9, 4, 4, 16)  # four inputs in a row, at each place of the filter
    assert ((groups == 0).sum(axis=2) == 2).all()
    assert [row["sparsity"] for row in found["weights"]] == [0, 0.5, 0.5]
    zeros = sum((kernel(model, name) == 0).sum() for name in ("a", "b", "head"))
    assert found["after"]["sparsity"] == pytest.approx(zeros / (432 + 2304 + 64))
    assert found["after"]["size_bytes"] == (tmp_path / "out.keras").stat().st_size
    assert found["before"]["parameters"] == found["after"]["parameters"] == model.count_params()


def test_data_measure_the_statistics_anew_unless_told_not_to(files, tmp_path):
    done = magnitude(files, tmp_path / "out.keras", "--sparsity", 0.75, "--data", files / "x.npy")
    assert "Measured the statistics of BatchNormalization anew on 40 samples." in done.stdout
    model = keras.models.load_model(tmp_path / "out.keras")
    seen = np.asarray(model.get_layer("a")(X))
    np.testing.assert_allclose(model.get_layer("bn").moving_mean, seen.mean((0, 1, 2)), atol=1e-5)
    words = ["--sparsity", 0.75, "--data", files / "x.npy", "--no-recalibrate", "--overwrite"]
    assert "anew" not in magnitude(files, tmp_path / "out.keras", *words).stdout
    kept = keras.models.load_model(tmp_path / "out.keras").get_layer("bn").moving_mean
    before = keras.models.load_model(files / "model.keras").get_layer("bn").moving_mean
    np.testing.assert_array_equal(kept, before)


# Channels away.


@pytest.fixture(scope="module")
def smaller(files):
    words = ["--parameters", 0.5, "--multiple-of", 4, "--save-plan", files / "plan.json", "--json"]
    return as_json(channels(files, files / "small.keras", *words))


def test_the_smaller_model_computes_what_the_masked_one_does(files, smaller):
    model = keras.models.load_model(files / "small.keras")
    masked = tfkit.ChannelPlan.load(files / "plan.json").mask(keras.models.load_model(files / "model.keras"))
    np.testing.assert_allclose(model.predict(X, verbose=0), masked.predict(X, verbose=0), atol=1e-5)
    assert smaller["after"]["parameters"] == model.count_params() <= smaller["before"]["parameters"] / 2
    a, b = (model.get_layer(name).filters for name in "ab")
    assert [(row["group"], row["channels_after"]) for row in smaller["groups"]][:2] == [("a", a), ("b", b)]
    # 2 * positions * kernel * channels in * channels out
    assert smaller["after"]["flops"] == 2 * (36 * 27 * a + 16 * 9 * a * b + 4 * b)
    assert smaller["plan"] == str(files / "plan.json")


def test_the_smaller_model_is_compiled_and_goes_on(files, smaller):
    model = keras.models.load_model(files / "small.keras")
    assert int(model.optimizer.iterations) == 2  # as many updates as the model had
    model.fit(X, Y, verbose=0)


def test_a_saved_plan_is_carried_out(files, smaller, tmp_path):
    words = [tmp_path / "again.keras", "--plan", files / "plan.json", "--no-keep-optimizer"]
    done = channels(files, *words)
    assert done.exit_code == 0, done.output
    one, two = (keras.models.load_model(x) for x in (files / "small.keras", tmp_path / "again.keras"))
    for old, new in zip(one.weights, two.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert not two.compiled


def test_a_dry_run_prints_the_plan_and_writes_nothing(files, tmp_path):
    before = {path: path.read_bytes() for path in files.iterdir()}
    done = channels(files, "--ratio", 0.5, "--scope", "uniform", "--dry-run")
    assert done.exit_code == 0, done.output
    head, a, b, last = (line.split() for line in done.stdout.splitlines()[:4])
    assert (head[:3], a, b) == (["group", "channels", "stay"], ["a", "16", "8"], ["b", "16", "8"])
    assert last[:3] == ["head", "4", "4"]
    assert "No model was written." in done.stdout
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_the_criterion_taylor_gets_inputs_and_targets(files, monkeypatch):
    given = {}

    def record(model, *, data, criterion, **_):
        given.update(data=data, criterion=criterion)
        raise tfkit.PruningError("enough")

    monkeypatch.setattr(tfkit, "plan_channel_pruning", record)
    channels(files, "--ratio", 0.25, "--criterion", "taylor", "--data", files / "train.npz", "--dry-run")
    assert given["criterion"] == "taylor"
    for got, wanted in zip(given["data"], (X, Y), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_table_of_sensitivity_decides(files, tmp_path):
    table = tmp_path / "s.csv"
    table.write_text(
        "path,parameters,sparsity,score,change\n"
        "a,100,0.5,0.5,-0.5\n"
        "a,100,0.9,0.1,-0.9\n"
        "b,100,0.5,0.99,-0.01\n"
        "b,100,0.9,0.98,-0.02\n"
    )
    words = ["--ratio", 0.25, "--scope", "sensitivity", "--sensitivity", table, "--dry-run", "--json"]
    found = as_json(channels(files, *words))
    assert [row["channels_after"] for row in found["groups"]] == [16, 8, 4]  # b loses, for it costs less


# What is refused, before the model is read.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("magnitude model.keras new.keras", "Either --sparsity or --sparsity-m-by-n"),
        ("magnitude model.keras new.h5 --sparsity .5", "`OUT` must be a .keras file.*Write new.keras"),
        ("magnitude model.keras fresh.keras --sparsity .5", "which is there. Pass --overwrite"),
        ("magnitude x.npy new.keras --sparsity .5", "must be a .keras file.*model.save"),
        ("magnitude model.keras x.npy/new.keras --sparsity .5", "folder that can be written to.*OUT x.npy"),
        ("channels model.keras new.keras", "Exactly one of --flops.*Received: none. Pass --flops 0.5"),
        ("channels model.keras new.keras --flops .5 --ratio .5", "Received: --flops, --ratio"),
        ("channels model.keras --flops .5", "no OUT. Add one, or --dry-run"),
        ("channels model.keras new.keras --flops .5 --criterion taylor", "no --data. Pass --data"),
        ("channels model.keras new.keras --flops .5 --scope sensitivity", "no --sensitivity"),
        (
            "channels model.keras new.keras --flops .5 --scope sensitivity --sensitivity no.csv",
            "without change, path, score, sparsity. Write it by table.to_csv",
        ),
        ("channels model.keras new.keras --plan no.json", "A channel plan is a file"),
        ("channels model.keras new.keras --plan no.json --layers a", "Received: .*--layers. Leave"),
        ("channels model.keras new.keras --flops .5 --save-plan no.json", "Pass --overwrite"),
    ],
)
def test_a_wrong_call_is_refused_at_once(files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    monkeypatch.setattr(tfkit.models, "load_base_model", None)
    before = sorted(files.iterdir())
    assert re.search(message, refusal(call("prune", *words.split()), 2))
    assert sorted(files.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("magnitude model.keras new.keras --sparsity 80", "80 is no fraction below 1; write 0.8 for 80%"),
        ("magnitude model.keras new.keras --sparsity-m-by-n 2-4", "write it as 2,4"),
        ("channels model.keras new.keras --flops 1", "no fraction below 1 and no count"),
        ("channels model.keras new.keras --ratio x", "'x' is no number"),
        ("model.keras new.keras", "Say what shall go: tfkit prune magnitude model.keras …, or tfkit prune"),
    ],
)
def test_an_option_of_a_wrong_form_is_refused(files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    done = call("prune", *words.split())
    assert done.exit_code == 2
    assert message in done.stderr


# What is refused once the model is known.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("magnitude model.keras new.keras --sparsity .5 --layers c", "Received: --layers c. Nearest"),
        (
            "magnitude model.keras new.keras --sparsity .5 --block-size 4,5",
            r"Received: --block-size 4,5, .*--layers '\*' --layers '!a'",
        ),
        (
            "magnitude model.keras new.keras --sparsity .5 --data narrow.npy",
            r"which are \[\(8, 8, 3\)\].*--data narrow.npy with samples of shape \[\(4, 8, 3\)\]",
        ),
        ("magnitude model.keras new.keras --sparsity-m-by-n 4:2", "0 < m < n.*Write 2,4"),
        ("channels model.keras new.keras --ratio .89", "raise --max-ratio, lower --multiple-of"),
        (
            "channels model.keras new.keras --ratio .5 --criterion taylor --data x.npy",
            "the array `y`.*by np.savez",
        ),
        (
            "channels fresh.keras new.keras --ratio .5 --criterion taylor --data train.npz",
            "not compiled. Compile it before you save it",
        ),
        ("channels fresh.keras new.keras --ratio .5 --keep-optimizer", "Leave the option out"),
    ],
)
def test_a_call_that_does_not_fit_the_model_writes_nothing(files, monkeypatch, words, message):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    assert re.search(message, refusal(call("prune", *words.split()), 2))
    assert sorted(files.iterdir()) == before


def test_an_optimizer_that_cannot_be_kept_may_be_left_out(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), keras.layers.Dense(1)])
    model.compile("adafactor", "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    words = ["channels", tmp_path / "model.keras", tmp_path / "out.keras", "--ratio", 0.5]
    assert "Adafactor" in (said := refusal(call("prune", *words), 2))
    assert "Pass --no-keep-optimizer and compile" in said
    assert call("prune", *words, "--no-keep-optimizer").exit_code == 0


def test_a_plan_of_another_model_is_refused(files, smaller, tmp_path):
    words = [files / "small.keras", tmp_path / "o.keras", "--plan", files / "plan.json"]
    assert "Make a plan for this model by --save-plan." in refusal(call("prune", "channels", *words), 2)


def test_a_file_is_replaced_whole_or_not_at_all(files, tmp_path, monkeypatch):
    out = tmp_path / "out.keras"
    out.write_bytes(b"before")

    def broken(self, path):
        path.write_bytes(b"half")
        raise RuntimeError("power cut")

    monkeypatch.setattr(keras.Model, "save", broken)
    assert "power cut" in refusal(magnitude(files, out, "--sparsity", 0.5, "--overwrite"), 1)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("out.keras", b"before")]


def test_a_model_may_replace_itself(files, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes((files / "model.keras").read_bytes())
    found = as_json(call("prune", "magnitude", path, path, "--sparsity", 0.5, "--overwrite", "--json"))
    assert found["before"]["sparsity"] == 0
    assert np.mean(kernel(keras.models.load_model(path), "b") == 0) == 0.5
