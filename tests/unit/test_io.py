"""Model files: what is loaded predicts the same bits; what is damaged is refused; nothing half-written is left."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
import subprocess
import sys

import gpytorch
import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.priors import GammaPrior, HalfNormalPrior, LogNormalPrior, NormalPrior, UniformPrior
from safetensors import safe_open
from safetensors.torch import save_file

import gpx
from gpx import GP, InputError, StructureError
from gpx.kernels import RBF, Constant, Linear, Matern, Periodic
from gpx.likelihoods import Gaussian
from gpx.testing.assertions import close
from gpx.testing.cases import KERNELS, points, targets

X, Y, NEW = points(12), targets(points(12)), points(6, seed=7)


def same(a, b, of=("y", "f"), new=NEW, **noise):
    """Bitwise."""
    for o in of:
        p, q = a.predict(new, of=o, **(noise if o == "y" else {})), b.predict(new, of=o, **(noise if o == "y" else {}))
        assert torch.equal(p.mean, q.mean) and torch.equal(p.variance, q.variance)
    assert a.log_evidence() == b.log_evidence()
    assert torch.equal(a.sample(new, 2), b.sample(new, 2))
    assert repr(a) == repr(b)


def round_trip(gp, folder, name="model.gpx"):
    gp.save(folder / name)
    assert os.listdir(folder) == [name], "one file, and no temporary one"
    return gpx.load(folder / name)


# PolynomialKernel is not among the registered kernels of gpytorch: see `test_unregistered_classes`.
@pytest.mark.parametrize("name", [n for n in KERNELS if n != "gpytorch-polynomial"])
def test_round_trip_of_every_kernel(name, tmp_path):
    same(gp := GP(KERNELS[name](), Gaussian(0.1)).condition(X, Y), round_trip(gp, tmp_path))


@pytest.mark.parametrize("mean", ["zero", "constant", "linear", gpytorch.means.ConstantMean()], ids=str)
@pytest.mark.parametrize("outputs", [None, 1, 2])
def test_round_trip_of_a_fit(outputs, mean, tmp_path):
    y = targets(X, outputs)
    y[3] = torch.nan
    gp = GP(Matern(ard=True), mean=mean).fit(X, y)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded)
    assert loaded.predict(NEW).mean.shape == y[:6].shape
    assert loaded.result_ == gp.result_
    assert str(loaded.parameters()) == str(gp.parameters())
    assert loaded.summary() == gp.summary()
    assert torch.equal(loaded.loo().log_density.nan_to_num(), gp.loo().log_density.nan_to_num())


def test_round_trip_of_known_noise(tmp_path):
    gp = GP(RBF(), Gaussian(torch.linspace(0.01, 1 / 3, 12))).fit(X, Y)
    same(gp, round_trip(gp, tmp_path), noise=0.2)


def test_round_trip_of_names_and_float32(tmp_path):
    frame = pd.DataFrame({"depth": X[:, 0], "age": X[:, 1]})
    gp = GP(RBF(active_dims=["age"]) + Linear(active_dims=["depth"])).fit(frame, Y)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded, new=frame)
    same(gp, loaded, new=frame[["age", "depth"]])
    with pytest.raises(InputError, match=r"lacks the column\(s\) age"):
        loaded.predict(frame[["depth"]])
    single = GP(RBF()).fit(X.float(), Y.float())
    loaded = round_trip(single, tmp_path)
    same(single, loaded)
    assert loaded.predict(NEW).mean.dtype == torch.float32


@pytest.mark.parametrize("prior", [
    LogNormalPrior(0.3, 0.7), GammaPrior(2.0, 3.0), HalfNormalPrior(2.0), NormalPrior(1.0, 0.5), UniformPrior(0.0, 10.0),
], ids=lambda p: type(p).__name__)  # fmt: skip
def test_priors_bounds_and_choices_survive(prior, tmp_path):
    kernel = Matern(lengthscale=0.5).set(lengthscale=dict(bounds=(0.1, 3.0), prior=prior), outputscale=dict(fixed=True))
    gp = GP(kernel + Constant(), Gaussian().set(noise=dict(bounds=(1e-3, 0.5)))).fit(X, Y)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded)
    assert str(loaded.parameters()) == str(gp.parameters())
    ours, theirs = gp.kernel_.kernels[0], loaded.kernel_.kernels[0]
    assert theirs.choices == ours.choices and not theirs.raw_outputscale.requires_grad
    assert float(theirs.raw_lengthscale_constraint.upper_bound) == 3.0
    assert type(theirs.lengthscale_prior) is type(prior)
    again, direct = loaded.fit(X, Y), GP(gp.kernel_, gp.likelihood_, mean=gp.mean_).fit(X, Y)
    close(again.predict(NEW).mean, direct.predict(NEW).mean, "a loaded model fits as the one that was saved", 1e-6)


@pytest.mark.parametrize("constraint", [
    gpytorch.constraints.Interval(0.05, 2.0), gpytorch.constraints.GreaterThan(0.1), gpytorch.constraints.Positive(),
], ids=lambda c: type(c).__name__)  # fmt: skip
@pytest.mark.parametrize("prior", [
    None, LogNormalPrior(0.3, 0.7), GammaPrior(2.0, 3.0), gpytorch.priors.SmoothedBoxPrior(0.1, 2.0, 0.1),
    gpytorch.priors.HalfCauchyPrior(1.0), gpytorch.priors.HorseshoePrior(0.3),
], ids=lambda p: type(p).__name__)  # fmt: skip
def test_constraints_and_priors_of_gpytorch_kernels_survive(constraint, prior, tmp_path):
    kernel = gpytorch.kernels.RBFKernel(
        ard_num_dims=2, active_dims=(2, 0), lengthscale_constraint=constraint, lengthscale_prior=prior
    )
    kernel = gpytorch.kernels.ScaleKernel(kernel, outputscale_constraint=gpytorch.constraints.GreaterThan(0.01))
    gp = GP(kernel, mean=gpytorch.means.ConstantMean()).fit(X, Y, max_iter=500)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded)
    assert str(loaded.parameters()) == str(gp.parameters())
    close(
        loaded.fit(X, Y).predict(NEW).mean,
        GP(gp.kernel_, gp.likelihood_, mean=gp.mean_).fit(X, Y).predict(NEW).mean,
        "refit",
        1e-3,
    )


def test_a_constraint_with_its_own_transform_is_refused(tmp_path):
    constraint = gpytorch.constraints.Positive(torch.exp, torch.log)
    gp = GP(gpytorch.kernels.RBFKernel(lengthscale_constraint=constraint)).condition(X, Y)
    with pytest.raises(StructureError, match="transform of its own"):
        gp.save(tmp_path / "m.gpx")


@pytest.mark.parametrize("form", ["covariance_matrix", "precision_matrix", "scale_tril"])
def test_a_joint_prior_of_several_values_survives(form, tmp_path):
    matrix = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    prior = gpytorch.priors.MultivariateNormalPrior(torch.ones(3, dtype=torch.float64), **{form: matrix})
    gp = GP(RBF(lengthscale=[1.0, 1.0, 1.0], ard=True).set(lengthscale=dict(prior=prior))).fit(X, Y)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded)
    at = torch.tensor([0.5, 0.7, 0.2], dtype=torch.float64)
    close(loaded.kernel_.lengthscale_prior.log_prob(at), prior.log_prob(at), "the prior", 1e-12)
    resumed = GP(gp.kernel).fit(X, Y, resume=tmp_path / "model.gpx")
    close(resumed.result_.objective, gp.result_.objective, "the fit that was saved", 1e-4)


def test_a_prior_with_its_own_transform_is_refused(tmp_path):
    prior = gpytorch.priors.NormalPrior(0.0, 1.0, transform=torch.log)
    gp = GP(RBF().set(lengthscale=dict(prior=prior))).condition(X, Y)
    with pytest.raises(StructureError, match="transform of its own.*leave it out"):
        gp.save(tmp_path / "m.gpx")


def test_settings_survive(tmp_path):
    gp = GP(RBF(), engine=gpx.engines.Exact(), objective=gpx.objectives.LeaveOneOut()).fit(X, Y)
    loaded = round_trip(gp, tmp_path)
    assert loaded.objective_ == gpx.objectives.LeaveOneOut() and loaded.engine_ == gpx.engines.Exact()
    assert loaded.engine_reason_ == gp.engine_reason_ == "chosen by the user"
    same(gp, loaded)


def test_a_conditioned_model_has_no_result(tmp_path):
    loaded = round_trip(GP(RBF()).condition(X, Y), tmp_path)
    assert loaded.result_ is None and "as given" in loaded.summary()


def test_a_loaded_model_goes_on(tmp_path):
    gp = GP(RBF()).fit(X[:8], Y[:8])
    loaded = round_trip(gp, tmp_path)
    same(gp.update(X[8:], Y[8:]), loaded.update(X[8:], Y[8:]))
    resumed = GP(RBF()).fit(X[:8], Y[:8], resume=tmp_path / "model.gpx")
    assert resumed.result_.iterations <= 3 and resumed.result_.converged


def test_paths_as_text_and_over_existing_files(tmp_path):
    gp, path = GP(RBF()).fit(X, Y), str(tmp_path / "a.gpx")
    gp.save(path)
    GP(Matern()).fit(X, Y).save(path)
    assert "Matern" in repr(gpx.load(path))


def test_pickle_and_deepcopy():
    gp = GP(Matern() * Periodic() + gpytorch.kernels.RBFKernel()).fit(X, Y)
    for other in (pickle.loads(pickle.dumps(gp)), copy.deepcopy(gp)):
        same(gp, other)
        assert str(other.parameters()) == str(gp.parameters())
        other.fit(NEW, targets(NEW))
    unfitted = pickle.loads(pickle.dumps(GP(RBF(0.3))))
    assert repr(unfitted) == repr(GP(RBF(0.3)))


def test_another_process_loads_the_same(tmp_path):
    """Without the code that made it: only gpx."""
    gp = GP(Matern() + Periodic() * Linear()).fit(X, Y)
    gp.save(tmp_path / "m.gpx")
    code = (
        "import sys, torch, gpx; gp = gpx.load(sys.argv[1]); x = torch.tensor(eval(sys.argv[2]), dtype=torch.float64);"
        "print(gp.predict(x).mean.numpy().tobytes().hex())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "m.gpx"), repr(NEW.tolist())]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == gp.predict(NEW).mean.numpy().tobytes().hex()


# ------------------------------------------------------------------------------------------------ damage


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.gpx"
    GP(Matern()).fit(X, Y).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.6, 0.9, 0.99, 0.9999])
def test_truncated_files(saved, share, tmp_path):
    path = tmp_path / "m.gpx"
    path.write_bytes(saved[: int(share * len(saved))])
    with pytest.raises(InputError, match=r"m\.gpx is not a readable model file \(truncated"):
        gpx.load(path)


def test_flipped_bits(saved, tmp_path):
    """Wherever it is: refused, and never another prediction. The padding of the header is not data."""
    path, random = tmp_path / "m.gpx", np.random.default_rng(0)
    header = struct.unpack("<Q", saved[:8])[0]
    places = [0, 3, 7, 8, 9, 20, 8 + header // 2, 8 + header, len(saved) - 1, *random.integers(0, len(saved), 60)]
    reference = None
    for place in map(int, places):
        damaged = bytearray(saved)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            gp = gpx.load(path)
        except (InputError, StructureError) as error:
            assert "m.gpx" in str(error) or "format" in str(error), error
        else:
            path.write_bytes(saved)
            reference = gpx.load(path).predict(NEW).mean if reference is None else reference
            assert torch.equal(gp.predict(NEW).mean, reference)


def test_data_bits_are_guarded(saved, tmp_path):
    """Every flipped bit after the header is found by the checksum."""
    start = 8 + struct.unpack("<Q", saved[:8])[0]
    for place in np.linspace(start, len(saved) - 1, 25).astype(int):
        damaged = bytearray(saved)
        damaged[place] ^= 1
        (tmp_path / "m.gpx").write_bytes(damaged)
        with pytest.raises(InputError, match=r"changed after it was saved.*save the model again"):
            gpx.load(tmp_path / "m.gpx")


def edited(saved, path, change):
    """The file with another header text, but a valid safetensors container."""
    path.write_bytes(saved)
    with safe_open(path, "pt") as file:
        tensors, metadata = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def test_edited_files(saved, tmp_path):
    path = tmp_path / "m.gpx"

    def other_noise(tensors, metadata):
        tensors["likelihood//raw_noise"] += 1

    def other_text(tensors, metadata):
        metadata["gpx"] = metadata["gpx"].replace("Matern", "RBF")

    def no_digest(tensors, metadata):
        del metadata["digest"]

    def without_a_tensor(tensors, metadata):
        del tensors["data.y"]

    for change in (other_noise, other_text, no_digest, without_a_tensor):
        edited(saved, path, change)
        with pytest.raises(InputError, match="changed after it was saved"):
            gpx.load(path)


def resigned(saved, path, change):
    """Edited by someone who computes the checksum too."""
    from gpx.files import digest

    def both(tensors, metadata):
        header = json.loads(metadata["gpx"])
        change(header)
        metadata["gpx"] = json.dumps(header, sort_keys=True)
        metadata["digest"] = digest(metadata["gpx"], tensors)

    edited(saved, path, both)


def test_newer_formats(saved, tmp_path):
    resigned(saved, tmp_path / "m.gpx", lambda header: header.update(format=99))
    with pytest.raises(InputError, match=r"format 99.*update gpx"):
        gpx.load(tmp_path / "m.gpx")


@pytest.mark.parametrize("name", ["os.system", "subprocess.Popen", "gpx.GP", "builtins.eval", "gpytorch.ExactGP"])
def test_only_registered_classes_are_built(saved, name, tmp_path):
    """No name in a file is imported or called."""
    resigned(
        saved, tmp_path / "m.gpx", lambda h: h["constructor"].update(mean={"class": name, "args": ["x"], "kwargs": {}})
    )
    with pytest.raises(StructureError, match=rf"{name}, which is not registered here.*gpx\.register"):
        gpx.load(tmp_path / "m.gpx")


def test_other_files(tmp_path):
    path = tmp_path / "m.gpx"
    with pytest.raises(InputError, match="There is no model file"):
        gpx.load(path)
    with pytest.raises(InputError, match="There is no model file"):
        gpx.load(tmp_path)
    for content in (b"", b"hello", b"x,y\n1,2\n" * 100, pickle.dumps(GP(RBF()))):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"m\.gpx is not a readable model file"):
            gpx.load(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not a model that gpx saved"):
        gpx.load(path)


# ------------------------------------------------------------------------------------------------ writing


def test_nothing_is_left_of_a_failed_write(tmp_path, monkeypatch):
    gp = GP(RBF()).fit(X, Y)
    gp.save(tmp_path / "m.gpx")
    before = (tmp_path / "m.gpx").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="Cannot write a model to .*No space left"):
        GP(Matern()).fit(X, Y).save(tmp_path / "m.gpx")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["m.gpx"]
    assert (tmp_path / "m.gpx").read_bytes() == before, "the old file is whole"


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    gp = GP(RBF()).fit(X, Y)
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        gp.save(tmp_path / "m.gpx")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("target", ["no/such/folder/m.gpx", "file/m.gpx", "folder"])
def test_places_that_cannot_be_written(target, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="Cannot write a model to"):
        GP(RBF()).fit(X, Y).save(tmp_path / target)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and os.listdir(tmp_path / "folder") == []


class Cubic(Matern):
    """A user's kernel, never registered."""


@pytest.mark.parametrize("path", [None, 3, "", ["m.gpx"], b"m.gpx"], ids=repr)
def test_what_is_not_a_path(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gp = GP(RBF()).condition(X, Y)
    for call in (lambda: gp.save(path), lambda: gpx.load(path)):
        with pytest.raises(InputError, match=r"path of a model file, such as 'model\.gpx'"):
            call()
    if path is not None:
        with pytest.raises(InputError, match=r"for fit\(\.\.\., resume=\), a fitted GP"):
            GP(RBF()).fit(X, Y, resume=path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("thing", [3, None, "RBF", RBF(), len], ids=repr)
def test_only_classes_are_registered(thing):
    with pytest.raises(InputError, match=r"takes a class.*gpx\.register\(MyKernel\), or @gpx\.register"):
        gpx.register(thing)


def test_unregistered_classes(tmp_path):
    """Not saved, with the line to write; nothing is left."""
    for kernel, name in (
        (Cubic(), "Cubic"), (RBF() + Cubic(), "Cubic"), (gpytorch.kernels.PolynomialKernel(2), "gpytorch.PolynomialKernel"),
    ):  # fmt: skip
        with pytest.raises(StructureError, match=rf"{name} is not registered.*gpx\.register\({name}\)"):
            GP(kernel).condition(X, Y).save(tmp_path / "m.gpx")
    assert os.listdir(tmp_path) == []


def test_a_registered_class(tmp_path, monkeypatch):
    from gpx import io

    monkeypatch.setattr(io, "_REGISTRY", dict(io._REGISTRY))

    @gpx.register
    class Quintic(Matern):
        """A user's kernel."""

    gp = GP(Quintic(nu=1.5) + Constant()).fit(X, Y)
    loaded = round_trip(gp, tmp_path)
    same(gp, loaded)
    assert isinstance(loaded.kernel_.kernels[0], Quintic)
    del io._REGISTRY["Quintic"]
    with pytest.raises(
        StructureError, match=r"Quintic, which is not registered here; define it and call gpx\.register\(Quintic\)"
    ):
        gpx.load(tmp_path / "model.gpx")


def test_before_a_fit(tmp_path):
    with pytest.raises(InputError, match="fit"):
        GP(RBF()).save(tmp_path / "m.gpx")
    assert os.listdir(tmp_path) == []
