"""Models as other libraries keep them: what is written means what the model does, and what is read too."""

import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.exceptions import NotFittedError

import retell
from retell import Autoencoder, BatchTopK, Gated, JumpReLU, ModelFileError, ReLU, TopK, convert, store
from retell.__main__ import main
from retell.convert import dictionary_learning, equality, folder, saelens, shallow, sparsify
from retell.convert.shallow import Shallow
from retell.scaling import Scaling

HERE = Path(__file__).parent
SPEC = importlib.util.spec_from_file_location("interop", HERE / "interop.py")
interop = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(interop)

FIXTURES = sorted(path.name for path in interop.FIXTURES.iterdir())
WRITTEN = sorted(interop.ARCHITECTURES)
EQUAL = 1e-6


def far(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(np.asarray(theirs)).max())


def recorded(name):
    found = load_file(interop.FIXTURES / name / "outputs.safetensors")
    return (found[part].numpy() for part in ("x", "codes", "rows"))


def rows_like_training(n=64):
    return interop.rows(n).astype(np.float64)


def plain(code, own=None, K=3, **others):
    """A model whose activations are the rows themselves."""
    eye = torch.eye(K)
    return Shallow(eye, torch.zeros(K), eye, torch.zeros(K), code, own or {}, **others).autoencoder("weights")


# ------------------------------------------------------------------ against what the other libraries made


def test_every_architecture_was_recorded():
    made = {name.split("-")[0] for name in FIXTURES}
    assert made == {"retell", "saelens", "sparsify", "dictionary_learning"}
    assert {f"retell-{name}" for name in WRITTEN} <= set(FIXTURES)
    assert len(FIXTURES) >= 30


@pytest.mark.parametrize("name", FIXTURES)
def test_recorded_folders_give_their_library_s_outputs(name):
    x, codes, rows = recorded(name)
    it = convert.read(interop.FIXTURES / name / "folder")
    assert 0.05 < (codes != 0).mean() < 0.6
    assert far(it.transform(x), codes) <= EQUAL
    assert np.array_equal(it.transform(x) != 0, codes != 0)
    assert far(it.reconstruct(x), rows) <= EQUAL
    assert far(it.inverse_transform(codes), rows) <= EQUAL


@pytest.mark.parametrize("architecture", WRITTEN)
def test_what_is_written_is_what_the_other_library_was_seen_to_read(architecture, tmp_path):
    """The model that was written gives the recorded outputs, and is written as it was then, to rounding."""
    name, (to, *_) = f"retell-{architecture}", interop.ARCHITECTURES[architecture]
    x, codes, rows = recorded(name)
    it = interop.model(architecture)
    assert far(it.transform(x), codes) <= EQUAL
    assert far(it.reconstruct(x), rows) <= EQUAL
    assert convert.write(it, tmp_path / "new", to=to).holds
    weights = convert.FORMATS[to].FILES[0]
    new, old = (load_file(path / weights) for path in (tmp_path / "new", interop.FIXTURES / name / "folder"))
    assert new.keys() == old.keys()
    for tensor in new:
        assert new[tensor].dtype == old[tensor].dtype == torch.float32
        assert far(new[tensor], old[tensor]) <= EQUAL, tensor
    new, old = (
        json.loads((path / "cfg.json").read_text()) for path in (tmp_path / "new", interop.FIXTURES / name / "folder")
    )
    for config in (new, old):
        config.get("metadata", {}).pop("retell", None)  # grows with retell
    assert new == old


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("scale", ["standard", "auto", None])
@pytest.mark.parametrize("architecture", WRITTEN)
def test_fits_come_back_with_equal_outputs(architecture, scale, tmp_path):
    to, code, prefixes = interop.ARCHITECTURES[architecture]
    objective = "Nested(MSE(), (8, 20))" if prefixes else "MSE()"
    penalty = " + 0.1 * L1()" if isinstance(code, ReLU) else ""
    it = Autoencoder(24, code_activation=code, objective=objective + penalty, scale=scale, max_iter=2, random_state=0,
                     precision="float64").fit(rows_like_training(200))  # fmt: skip
    equal = convert.write(it, tmp_path / "folder", to=to, dtype="float64")
    assert equal.holds
    assert max(equal.codes, equal.rows) < 1e-12
    again, x = convert.read(tmp_path / "folder"), rows_like_training()
    assert far(again.transform(x), it.transform(x)) < 1e-11
    assert far(again.reconstruct(x), it.reconstruct(x)) < 1e-12
    assert again.codec_.centre.dtype == torch.float64
    assert again.code_activation == repr(code)
    assert again.objective == objective
    assert convert.write(again, tmp_path / "folder", to=to, dtype="float64").holds, "an older folder is replaced"


def test_a_level_of_topk_has_no_place(tmp_path):
    it = Autoencoder(24, code_activation=TopK(4, least=0.5), max_iter=2, random_state=0).fit(rows_like_training(200))
    for to in ("saelens", "sparsify"):
        with pytest.raises(ValueError, match=r"code_activation=TopK\(4, least=0.5\) has no place in the folder"):
            convert.write(it, tmp_path / to, to=to)


def test_tied_and_holed_models_are_written(tmp_path):
    x = rows_like_training(200)
    x[::7, 3] = np.nan
    it = Autoencoder(24, code_activation=TopK(4), tied=True, max_iter=2, random_state=0).fit(x)
    assert saelens.write(it, tmp_path / "sae").holds
    whole = np.nan_to_num(x[1:6])
    assert far(saelens.read(tmp_path / "sae").reconstruct(whole), it.reconstruct(whole)) < EQUAL


def test_column_names_and_prefixes_travel(tmp_path):
    import pandas as pd

    names = [f"column {i}" for i in range(interop.D)]
    frame = pd.DataFrame(rows_like_training(200), columns=names)
    for to, code in (("saelens", TopK(4)), ("sparsify", TopK(4)), ("saelens", JumpReLU()), ("saelens", BatchTopK(4))):
        it = Autoencoder(24, code_activation=code, objective="Nested(MSE(), (5, 9))", max_iter=2, random_state=0)
        convert.write(it.fit(frame), tmp_path / to, to=to)
        again = convert.read(tmp_path / to)
        assert list(again.feature_names_in_) == names
        assert again.objective == "Nested(MSE(), (5, 9))"


def test_float32_models_of_far_rows_are_written(tmp_path):
    """Means far above the spreads: what float32 loses of the shift does not reach the codes."""
    x = rows_like_training(200) + 3e5
    it = Autoencoder(24, code_activation=BatchTopK(4), max_iter=2, random_state=0).fit(x)
    equal = saelens.write(it, tmp_path / "sae")
    assert equal.codes < EQUAL
    assert equal.holds


# ------------------------------------------------------------------ thresholds, to the bit


def test_batchtopk_is_active_at_its_threshold_and_jumprelu_above_it(tmp_path):
    below, above = np.nextafter(np.float32(1), np.float32(0)), np.nextafter(np.float32(1), np.float32(2))
    x = np.array([[1.0, below, above]], np.float32)
    for code, threshold, active in (
        (BatchTopK(2), torch.tensor(1.0), [[1, 0, 1]]),
        (JumpReLU(), torch.ones(3), [[0, 0, 1]]),
    ):
        it = plain(code, {"threshold": threshold})
        assert ((it.transform(x) > 0) == active).all()
        saelens.write(it, tmp_path / "sae")
        written = load_file(tmp_path / "sae" / "sae_weights.safetensors")
        a = x @ written["W_enc"].numpy() + written["b_enc"].numpy()
        assert ((a > written["threshold"].numpy()) == active).all(), "SAELens compares strictly"
        assert ((saelens.read(tmp_path / "sae").transform(x) > 0) == active).all()


def test_thresholds_of_nought_and_below_are_relu(tmp_path):
    x = np.array([[-0.5, 0.0, 0.5]], np.float32)
    for code, threshold in ((BatchTopK(2), torch.zeros(())), (JumpReLU(), torch.tensor([-1.0, -1.0, 0.0]))):
        it = plain(code, {"threshold": threshold})
        saelens.write(it, tmp_path / "sae")
        assert (load_file(tmp_path / "sae" / "sae_weights.safetensors")["threshold"] >= 0).all()
        assert np.array_equal(saelens.read(tmp_path / "sae").transform(x), [[0, 0, 0.5]])


def test_a_common_threshold_of_unknown_k_is_jumprelu(tmp_path):
    it = plain(BatchTopK(2), {"threshold": torch.tensor(1.0)})
    saelens.write(it, tmp_path / "sae")
    file = tmp_path / "sae" / "cfg.json"
    config = json.loads(file.read_text())
    for details in ({"k": 1.5}, {"k": 4}, {"k": "2"}, {}, None):
        config["metadata"]["training_architecture_details"] = details
        file.write_text(json.dumps(config))
        assert saelens.read(tmp_path / "sae").code_activation == "JumpReLU()"


# ------------------------------------------------------------------ wrong conversions are caught


@pytest.mark.parametrize("architecture", WRITTEN)
def test_any_tensor_that_is_a_little_wrong_is_caught(architecture, tmp_path, monkeypatch):
    to, it = interop.ARCHITECTURES[architecture][0], interop.model(architecture)
    module = convert.FORMATS[to]
    save, caught = module.save, []
    for tensor in load_file(interop.FIXTURES / f"retell-{architecture}" / "folder" / module.FILES[0]):

        def wrong(tensors, *texts, tensor=tensor):
            return save({**tensors, tensor: tensors[tensor] * (1 + 1e-3)}, *texts)

        monkeypatch.setattr(module, "save", wrong)
        with pytest.raises(ValueError, match=r"would not do what the model does .* nothing was written"):
            module.write(it, tmp_path / "folder")
        caught.append(tensor)
    assert len(caught) >= 4
    assert not list(tmp_path.iterdir())


def test_a_forgotten_scaling_is_caught(tmp_path, monkeypatch):
    it = interop.model("topk")
    of = Shallow.of

    def forgetful(model, dtype):
        model = replace(
            model._model, scaling=Scaling(*np.zeros((1, interop.D)), np.ones(interop.D), np.zeros(interop.D))
        )
        bare = Autoencoder(code_activation=TopK(5))
        bare._become(model)
        return of(bare, dtype)

    monkeypatch.setattr(Shallow, "of", forgetful)
    with pytest.raises(ValueError, match="would not do"):
        sparsify.write(it, tmp_path / "folder")


def test_an_older_folder_survives_a_conversion_that_fails(tmp_path, monkeypatch):
    it = interop.model("standard")
    saelens.write(it, tmp_path / "sae")
    before = {file.name: file.read_bytes() for file in (tmp_path / "sae").iterdir()}
    monkeypatch.setattr(equality, "ROUNDING", 0.0)
    with pytest.raises(ValueError, match="nothing was written"):
        saelens.write(it, tmp_path / "sae")
    assert {file.name: file.read_bytes() for file in (tmp_path / "sae").iterdir()} == before


def test_columns_that_float32_can_t_hold_are_caught(tmp_path):
    x = rows_like_training(200)
    x[:, 2] *= 1e-42
    it = Autoencoder(24, code_activation=TopK(4), scale="standard", max_iter=2, random_state=0).fit(x)
    with pytest.raises(ValueError, match="dtype='float64' keeps more digits"):
        saelens.write(it, tmp_path / "sae")
    assert saelens.write(it, tmp_path / "sae", dtype="float64").holds


def test_generated_rows_stand_close_to_thresholds_on_both_sides():
    it = interop.model("jumprelu")
    exact = equality._in_float64(it)
    with torch.no_grad():
        moved = equality._rows(exact)[2]
        a = exact.codec_.encoder(torch.from_numpy(exact.scaling_.to(moved)))
        off = (a - it.codec_.code_activation.threshold.clamp(min=0)) / a.abs().max()
    for near in (1e-3, 1e-5):
        assert ((off > 0) & (off < 2 * near)).any(1).sum() >= 24
        assert ((off < 0) & (off > -2 * near)).any(1).sum() >= 24


def test_no_global_random_state_is_touched(tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    saelens.write(interop.model("gated"), tmp_path / "sae")
    saelens.read(tmp_path / "sae")
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


# ------------------------------------------------------------------ what can't be said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"hidden_layer_sizes": (9,)}, r"hidden layers \(9,\).*fit with hidden_layer_sizes=\(\)"),
        ({"hidden_layer_sizes": (), "decoder_hidden_layer_sizes": (9,)}, "hidden layers"),
        ({"code_activation": "Sigmoid()"}, r"code_activation=Sigmoid\(\) has no place"),
        ({"code_activation": "Sample()"}, "has no place"),
        ({"code_activation": "ReLU()", "objective": "Poisson()"}, "link"),
    ],
)
@pytest.mark.parametrize("to", ["saelens", "sparsify"])
def test_models_that_have_no_place_are_refused(given, sentence, to, tmp_path):
    given = {"code_activation": "TopK(2)", "hidden_layer_sizes": (), **given}
    it = Autoencoder(6, max_iter=1, random_state=0, **given).fit(np.abs(rows_like_training(60)))
    with pytest.raises(ValueError, match=sentence):
        convert.write(it, tmp_path / "folder", to=to)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path):
    it = interop.model("standard")
    with pytest.raises(ValueError, match="sparsify knows TopK codes only"):
        sparsify.write(it, tmp_path / "folder")
    with pytest.raises(ValueError, match="dtype='bfloat16' is not possible"):
        saelens.write(it, tmp_path / "folder", dtype="bfloat16")
    with pytest.raises(ValueError, match="to='onnx' is not possible"):
        convert.write(it, tmp_path / "folder", to="onnx")
    it.inference = "map"
    with pytest.raises(ValueError, match="set inference='encoder' first"):
        saelens.write(it, tmp_path / "folder")
    with pytest.raises(NotFittedError):
        saelens.write(Autoencoder(), tmp_path / "folder")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a SAELens folder"):
        saelens.write(interop.model("standard"), tmp_path / "mine")
    (tmp_path / "mine" / "cfg.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds more than a SAELens folder \(letter.txt\)"):
        saelens.write(interop.model("standard"), tmp_path / "mine")


@pytest.fixture
def sae(tmp_path):
    """A folder of SAELens, to be changed."""
    shutil.copytree(interop.FIXTURES / "saelens-topk" / "folder", tmp_path / "sae")
    return tmp_path / "sae"


def change(path, **changes):
    file = path / "cfg.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "transcoder"}, "architecture 'transcoder', which no retell model can express"),
        ({"architecture": "abstopk"}, "'abstopk'"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit'"),
        ({"architecture": "jumprelu"}, "'threshold' is missing"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations='layer_norm'"),
        ({"normalize_activations": "expected_average_only_in"}, "fold the normalisation"),
        ({"k": 2.5}, "k=2.5, a whole number"),
        ({"k": 41}, "up to d_sae=40"),
        ({"d_sae": 39}, r"'W_dec' is .* of shape \(39, 12\) were expected"),
        ({"d_in": "12"}, "can't be used: expected `int`"),
        ({"d_in": None}, "d_in"),
        ({"apply_b_dec_to_input": "yes"}, "expected `bool`"),
    ],
)
def test_folders_of_saelens_that_can_t_be_read_say_why(sae, changes, sentence):
    change(sae, **changes)
    with pytest.raises(ModelFileError, match=sentence):
        convert.read(sae)


def test_saelens_of_before_version_6(sae):
    """No version: the activation function says that it is top-k."""
    x, codes, _ = recorded("saelens-topk")
    change(sae, architecture=None, k=None, metadata=None, activation_fn_str="topk", activation_fn_kwargs={"k": 5},
           normalize_activations=False)  # fmt: skip
    assert far(convert.read(sae).transform(x), codes) <= EQUAL
    change(sae, normalize_activations=True)
    with pytest.raises(ModelFileError, match="expected_average_only_in"):
        convert.read(sae)
    change(sae, normalize_activations=False, activation_fn_str="tanh-relu")
    with pytest.raises(ModelFileError, match="tanh-relu"):
        convert.read(sae)


def test_tensors_are_checked(sae):
    file = sae / "sae_weights.safetensors"
    good = load_file(file)
    for changed, sentence in (
        ({**good, "extra": torch.zeros(3)}, "'extra' is not expected"),
        ({k: v for k, v in good.items() if k != "b_dec"}, "'b_dec' is missing"),
        ({**good, "b_enc": good["b_enc"].int()}, "torch.int32"),
        ({**good, "b_enc": good["b_enc"] * float("nan")}, "'b_enc' has values that are not finite"),
        ({**good, "scaling_factor": torch.full((12,), 2.0)}, "scaling_factor"),
    ):
        save_file(changed, file)
        with pytest.raises(ModelFileError, match=sentence):
            convert.read(sae)
    save_file({**good, "scaling_factor": torch.ones(12)}, file)
    x, codes, _ = recorded("saelens-topk")
    assert far(convert.read(sae).transform(x), codes) <= EQUAL
    save_file({k: v.bfloat16() for k, v in good.items()}, file)
    assert torch.equal(convert.read(sae).codec_.encoder.last.weight, good["W_enc"].bfloat16().float().T)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "skip connection"),
        ({"activation": "groupmax"}, "activation='groupmax'"),
        ({"k": 41}, "a k up to 40"),
        ({"num_latents": 0}, r"\(384, 12\) were expected"),
    ],
)
def test_folders_of_sparsify_that_can_t_be_read_say_why(changes, sentence, tmp_path):
    shutil.copytree(interop.FIXTURES / "sparsify-free" / "folder", tmp_path / "folder")
    change(tmp_path / "folder", **changes)
    with pytest.raises(ModelFileError, match=sentence):
        convert.read(tmp_path / "folder")


def test_a_width_by_expansion_is_read(tmp_path):
    """num_latents may be left out; then it is a multiple of the columns."""
    it = plain(TopK(2), K=4)
    sparsify.write(it, tmp_path / "folder")
    change(tmp_path / "folder", num_latents=None, expansion_factor=1)
    assert convert.read(tmp_path / "folder").n_components_ == 4


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_runs_nothing(tmp_path):
    shutil.copytree(interop.FIXTURES / "dictionary_learning-AutoEncoder" / "folder", tmp_path / "folder")
    file = tmp_path / "folder" / "ae.pt"
    good = torch.load(file, weights_only=True)
    K = good["encoder.bias"].shape[0]
    for changed, sentence in (
        ({**good, "trap": Trap(str(tmp_path / "sprung"))}, "holds more than tensors"),
        ({**good, "bias": 3.0}, "no table of tensors"),
        (list(good.values()), "no table of tensors"),
        ({**good, "k": torch.tensor(K)}, "damaged: a k from 1 to 40"),
        ({**good, "extra": torch.zeros(2)}, "'extra' is not expected"),
        ({"bias": good["bias"]}, "is missing"),
    ):
        torch.save(changed, file)
        with pytest.raises(ModelFileError, match=sentence):
            convert.read(tmp_path / "folder")
    file.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelFileError, match="damaged"):
        convert.read(tmp_path / "folder")
    assert not (tmp_path / "sprung").exists()
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    config["trainer"]["dict_class"] = "CrossCoder"
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="class 'CrossCoder', which no retell model can express"):
        convert.read(tmp_path / "folder")


@pytest.mark.parametrize("name", ["saelens-training-matryoshka", "sparsify-free", "dictionary_learning-BatchTopKSAE"])
def test_damage_is_one_kind_of_error(name, tmp_path):
    draw = np.random.default_rng(0)
    source = interop.FIXTURES / name / "folder"
    for _ in range(60):
        shutil.copytree(source, tmp_path / "folder")
        file = sorted((tmp_path / "folder").iterdir())[draw.integers(2)]
        content = bytearray(file.read_bytes())
        at = int(draw.integers(min(len(content), 1500)))
        if draw.random() < 0.3:
            del content[at:]
        else:
            content[at] = int(draw.integers(256))
        file.write_bytes(bytes(content))
        with contextlib.suppress(ModelFileError):  # a change of a weight is a model too
            convert.read(tmp_path / "folder")
        shutil.rmtree(tmp_path / "folder")


def test_folders_of_no_format_are_told_so(tmp_path):
    with pytest.raises(ModelFileError, match="there is no folder"):
        convert.read(tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"none of the formats.*saelens: sae_weights.safetensors and cfg.json"):
        convert.read(tmp_path)
    interop.model("topk").save(tmp_path / "model")
    with pytest.raises(ModelFileError, match="a retell model already"):
        convert.read(tmp_path / "model")
    for i in range(2):
        saelens.write(interop.model("topk"), tmp_path / f"layer{i}")
    with pytest.raises(ModelFileError, match="several models: choose one of layer0, layer1"):
        convert.read(tmp_path)


# ------------------------------------------------------------------ an imported model is a model


@pytest.mark.parametrize("name", FIXTURES)
def test_imported_models_save_and_load_to_the_bit(name, tmp_path):
    x = recorded(name).__next__()
    it = convert.read(interop.FIXTURES / name / "folder")
    it.save(tmp_path / "model")
    again = retell.load(tmp_path / "model")
    assert np.array_equal(again.transform(x), it.transform(x))
    assert np.array_equal(again.reconstruct(x), it.reconstruct(x))
    assert again._model.fitted.origin == it._model.fitted.origin
    assert again.density_ is None
    for parameter, value in it.get_params().items():
        assert again.get_params()[parameter] == value


def test_an_imported_model_knows_what_it_does_not_know():
    it = convert.read(interop.FIXTURES / "saelens-topk" / "folder")
    x = recorded("saelens-topk").__next__()
    with pytest.raises(ValueError, match=r"read from SAELens, topk and has seen no rows.*partial_fit\(X\)"):
        it.score_samples(x)
    with pytest.raises(ValueError, match="has seen no rows"):
        it.surprise(x)
    assert np.isnan([it.pca_score_, it.best_loss_]).all()
    assert it.n_iter_ == 0
    assert it.solver_ == "none"
    assert it.loss_curve_ == []
    assert np.isfinite(it.score(x))
    assert np.allclose(it.mean_, load_file(interop.FIXTURES / "saelens-topk/folder/sae_weights.safetensors")["b_dec"])
    assert {finding.name for finding in retell.diagnose(it, np.tile(x, (4, 1)))}.isdisjoint(
        {"worse than PCA", "too much capacity"}
    )


def test_unseen_cells_are_b_dec_and_are_filled():
    for name in ("saelens-jumprelu", "saelens-jumprelu-uncentred"):
        it = convert.read(interop.FIXTURES / name / "folder")
        x = recorded(name).__next__().copy()
        whole, holed = x.copy(), x
        holed[:, 2], whole[:, 2] = np.nan, it.mean_[2]
        assert far(it.transform(holed), it.transform(whole)) <= EQUAL
        kept = it.reconstruct(holed, keep_seen=True)
        seen = np.arange(interop.D) != 2
        assert np.array_equal(kept[:, seen], holed[:, seen])
        assert far(kept[:, 2], it.reconstruct(holed)[:, 2]) <= EQUAL


@pytest.mark.parametrize("holes", [False, True])
def test_partial_fit_goes_on_from_an_import_and_settles_what_was_unknown(holes, tmp_path):
    it = convert.read(interop.FIXTURES / "saelens-inference-batchtopk" / "folder")
    x = rows_like_training(400) / np.geomspace(0.3, 30, interop.D)
    x[::5, 3] = np.nan if holes else x[::5, 3]
    before = it.transform(x)
    error = 1 - it.score(x)
    it.partial_fit(x)
    assert 0 < far(it.transform(x), before) < 0.7, "it went on from where it was"
    for _ in range(4):
        it.partial_fit(x)
    assert 1 - it.score(x) < 0.9 * error
    assert np.isfinite(it.score_samples(x)).all()
    assert np.isfinite(it.pca_score_)
    assert it._model.fitted.origin == ""
    assert it._factors.loadings.shape[1] > 0
    it.save(tmp_path / "model")
    assert np.array_equal(retell.load(tmp_path / "model").score_samples(x), it.score_samples(x))
    assert saelens.write(it, tmp_path / "sae").holds


def test_a_decoder_of_unit_norm_stays_so_and_another_is_left_free():
    unit, free = (convert.read(interop.FIXTURES / f"sparsify-{name}" / "folder") for name in ("unit", "free"))
    assert (unit.constraint, free.constraint) == ("UnitNorm()", "Free()")


@pytest.mark.parametrize("origin", ["", "elsewhere"])
def test_only_a_model_from_elsewhere_has_no_density(origin, tmp_path):
    """A model file that says otherwise is refused, its seal notwithstanding."""
    fit = Autoencoder(2, max_iter=1, random_state=0).fit(rows_like_training())
    it = fit if origin else convert.read(interop.FIXTURES / "saelens-topk" / "folder")
    it.save(tmp_path / "model")
    config = store.read_model(tmp_path / "model")
    config["fitted"]["origin"] = origin
    store.write_model(tmp_path / "model", config, load_file(tmp_path / "model" / "weights.safetensors"))
    with pytest.raises(ModelFileError, match=r"does not fit model.toml: density\.code_mean"):
        retell.load(tmp_path / "model")


WIDE = """
import resource, sys, torch
from retell import TopK, convert, load
from retell.convert.shallow import Shallow
K, D = 32768, 8
torch.set_num_threads(1)
draw = torch.Generator().manual_seed(0)
V = torch.nn.functional.normalize(torch.randn(K, D, generator=draw), dim=1)
it = Shallow(V.T.contiguous(), torch.zeros(K), V, torch.zeros(D), TopK(8)).autoencoder("weights")
convert.write(it, "sae", to="saelens")
again = convert.read("sae")
again.save("model")
load("model").transform(torch.randn(5, D, generator=draw).numpy())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_nothing_is_as_wide_as_the_code_squared(tmp_path):
    """32,768 units: a square of them would be 8.6 GB in float64, 4.3 in float32, 1.1 as truth values."""
    done = subprocess.run([sys.executable, "-c", WIDE], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 900_000, "kB"


# ------------------------------------------------------------------ the command line


@pytest.fixture
def shop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    interop.model("batchtopk").save("model")
    np.save("x.npy", interop.rows())
    return tmp_path


def test_there_and_back(shop, capsys):
    assert main(["export", "model", "--to", "saelens", "-o", "sae"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "sae: saelens, equal on 288 rows: codes to" in said.err
    assert main(["import", "sae", "-o", "again"]) == 0
    said = capsys.readouterr().err
    assert "SAELens, jumprelu; it has seen no rows" in said
    assert "equal on 288 rows" in said
    assert "BatchTopK(4)" in said
    for model in ("model", "again"):
        assert main(["encode", model, "x.npy", "-o", f"{model}.npy", "-q"]) == 0
    assert far(np.load("again.npy"), np.load("model.npy")) <= EQUAL
    capsys.readouterr()
    assert main(["export", "model", "--to", "saelens", "-o", "sae", "--force", "--quiet", "--dtype", "float64"]) == 0
    assert main(["import", "sae", "-o", "again", "--force", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    with safe_open("sae/sae_weights.safetensors", framework="pt") as found:
        assert found.get_tensor("W_enc").dtype == torch.float64


def test_info_of_an_imported_model(shop, capsys):
    main(["export", "model", "--to", "saelens", "-o", "sae", "-q"])
    main(["import", "sae", "-o", "again", "-q"])
    assert main(["info", "again"]) == 0
    assert "it has seen no rows" in capsys.readouterr().out
    assert main(["info", "again", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert told["fitted"]["score"] is None
    assert told["fitted"]["origin"] == "SAELens, jumprelu"
    assert main(["score", "again", "x.npy"]) == 3
    assert "has seen no rows" in capsys.readouterr().err


def test_commands_say_what_is_wrong(shop, capsys, monkeypatch):
    Path("mine").mkdir()
    Path("mine/letter.txt").write_text("dear")
    main(["export", "model", "--to", "saelens", "-o", "sae", "-q"])
    loads = []
    monkeypatch.setattr("retell.cli._load", lambda path: loads.append(path))
    for words, code, sentence in (
        (["export", "model", "--to", "saelens", "-o", "sae"], 2, "--force replaces it"),
        (["export", "model", "--to", "saelens", "-o", "mine", "--force"], 2, "not such a folder"),
        (["export", "model", "--to", "saelens", "-o", "no/where"], 2, "there is no folder"),
        (["export", "model", "--to", "onnx", "-o", "new"], 2, "onnx"),
        (["export", "model", "-o", "new"], 2, "--to"),
        (["import", "sae", "-o", "model"], 2, "--force replaces it"),
        (["import", "sae", "-o", "mine", "--force"], 2, "is not a model"),
        (["import", "sae", "-o", "no/where"], 2, "there is no folder"),
    ):
        assert main(words) == code, words
        assert sentence in capsys.readouterr().err
    assert not loads, "nothing was read"
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    for words, code, sentence in (
        (["export", "model", "--to", "sparsify", "-o", "new"], 2, "TopK codes only"),
        (["export", "mine", "--to", "saelens", "-o", "new"], 4, "not a complete model"),
        (["import", "mine", "-o", "new"], 4, "none of the formats"),
        (["import", "nowhere", "-o", "new"], 4, "there is no folder nowhere"),
    ):
        assert main(words) == code, words
        assert sentence in capsys.readouterr().err
    assert not Path("new").exists()


def test_convert_is_found_without_importing_it():
    done = subprocess.run(
        [sys.executable, "-c", "import retell; print(retell.convert.saelens.read.__name__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "read\n"
    assert shallow.dtype_of("float64") == torch.float64
    assert folder.columns_in({"columns": ["a"]}, 2) is None
    assert dictionary_learning.FILES == ("ae.pt", "config.json")
    assert Gated() == retell.parse("Gated()")
