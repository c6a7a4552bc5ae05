"""The estimator is one of scikit-learn's: its own checks on embeddings, and what they cannot know on images."""

import pickle
import warnings
from inspect import signature

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline

from conftest import DEVICE
from deepclust_nb.core import DeepClustError
from deepclust_nb.estimator import DeepCluster
from deepclust_nb.train import METHODS

estimator_checks = pytest.importorskip("sklearn.utils.estimator_checks")

# A table of numbers is a table of embeddings, so every check of scikit-learn applies to it. Checks that would have to
# be failed stand here with the reason.
EXPECTED: dict[str, str] = {}
QUIET = {"progress": False, "device": DEVICE}


def checks_of_sklearn():
    "Its checks, where it lets checks be expected to fail (1.6 and later)."
    try:
        return estimator_checks.parametrize_with_checks(
            [DeepCluster(n_clusters=3, **QUIET)], expected_failed_checks=lambda _: EXPECTED
        )
    except TypeError:
        return estimator_checks.parametrize_with_checks([DeepCluster(n_clusters=3, **QUIET)])


@checks_of_sklearn()
def test_checks_of_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        check(estimator)


@pytest.mark.skipif(
    "on_skip" not in signature(estimator_checks.check_estimator).parameters,
    reason="before 1.6 there is no list of what was skipped",
)
def test_no_check_was_left_out():
    "scikit-learn skips checks of input that it cannot make; of tables there must be none."
    found = estimator_checks.check_estimator(
        DeepCluster(n_clusters=3, **QUIET),
        on_skip=None,
        on_fail=None,
        expected_failed_checks=EXPECTED,
    )
    states = {result["status"] for result in found}
    skipped = {result["check_name"] for result in found if result["status"] == "skipped"}
    assert "failed" not in states and len(found) > 40
    assert skipped <= {"check_array_api_input"}, skipped  # of arrays of other libraries


# Images


TINY = {"width": 4, "log_every": 1}


@pytest.fixture(scope="module")
def digits8() -> tuple[np.ndarray, np.ndarray]:
    "Eighty digits in [0, 1], and their labels."
    found = load_digits()
    return found.images[:80] / 16, found.target[:80]


def tiny(method: str = "byol", **more) -> DeepCluster:
    "An estimator that takes a second."
    params = {"profile": "ci", "epochs": 1, "settings": TINY} | QUIET | more
    return DeepCluster(method, 4, **params)


@pytest.fixture(scope="module")
def fitted(digits8) -> DeepCluster:
    "Tests read it and leave it as it is."
    return tiny().fit(digits8[0])


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, digits8, tmp_path):
    "Fitted, asked, pickled, saved: the same answers."
    images = digits8[0]
    epochs = {"mmdc": 2, "scl": 2}.get(method, 1)
    settings = TINY | ({"init": "random"} if method == "lsdc" else {})
    model = tiny(method, epochs=epochs, settings=settings).fit(images)
    shares = model.predict_proba(images)
    assert shares.shape == (80, 4) and np.allclose(shares.sum(1), 1, atol=1e-5)
    assert np.array_equal(shares.argmax(1), model.labels_)
    assert model.transform(images).shape[0] == 80
    model.save(tmp_path / "model.pt")
    for other in (pickle.loads(pickle.dumps(model)), DeepCluster.load(tmp_path / "model.pt")):
        assert np.array_equal(other.predict_proba(images), shares)
        assert np.array_equal(other.labels_, model.labels_)


def test_a_start_that_is_trained_first_leaves_nothing(digits8, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = tiny(settings=TINY | {"init": "rotnet"}).fit(digits8[0])
    assert model.labels_.shape == (80,) and not list(tmp_path.iterdir())


def test_nothing_is_left_when_training_fails(digits8, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = tiny(epochs=3, settings=TINY | {"lr": 1e30})
    with pytest.raises(DeepClustError, match="not finite"):
        model.fit(digits8[0])
    assert not list(tmp_path.iterdir()) and not hasattr(model, "labels_")


def test_labels_are_never_looked_at(digits8, fitted):
    images, y = digits8
    assert np.array_equal(tiny().fit(images, y).labels_, fitted.labels_)
    assert np.array_equal(tiny().fit(images, 3 - y % 4).labels_, fitted.labels_)
    assert np.array_equal(tiny().fit_predict(list(zip(images, y))), fitted.labels_)


def test_one_seed_one_result(digits8, fitted):
    images = digits8[0]
    same = tiny(random_state=np.int64(0)).fit(images)
    assert np.array_equal(same.predict_proba(images), fitted.predict_proba(images))
    other = tiny(random_state=1).fit(images)
    assert not np.array_equal(other.predict_proba(images), fitted.predict_proba(images))
    stream = [tiny(random_state=np.random.RandomState(5)).fit(images) for _ in range(2)]
    assert stream[0].seed_ == stream[1].seed_
    assert np.array_equal(stream[0].labels_, stream[1].labels_)


def test_other_random_numbers_do_not_matter(digits8, fitted):
    "Neither what was drawn before nor the user's own draws change, or are changed."
    torch.manual_seed(7), np.random.seed(7)
    torch.rand(3)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert np.array_equal(tiny().fit(digits8[0]).labels_, fitted.labels_)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_fit_again_forgets_the_first(digits8):
    model = tiny().fit(digits8[0])
    model.fit(digits8[0].reshape(80, 64))
    assert not hasattr(model, "history_") and model.n_features_in_ == 64
    model.fit(digits8[0])
    assert not hasattr(model, "n_features_in_") and not hasattr(model, "cluster_centers_")


def test_a_failed_fit_keeps_the_first(digits8):
    model = tiny().fit(digits8[0])
    labels = model.labels_
    with pytest.raises(ValueError):
        model.fit(16 * digits8[0])
    assert model.labels_ is labels


def test_cross_validation_in_a_pipeline(digits8):
    "As scikit-learn does it: cloned, fitted on a part, asked about the rest."
    chain = make_pipeline(tiny(), LogisticRegression(max_iter=200))
    found = cross_val_predict(chain, *digits8, cv=2)
    assert found.shape == (80,)


def test_parameters_of_a_pipeline():
    chain = make_pipeline(tiny(), LogisticRegression())
    chain.set_params(deepcluster__n_clusters=7, deepcluster__method="mmdc")
    assert chain[0].n_clusters == 7 and clone(chain)[0].method == "mmdc"
    with pytest.raises(ValueError, match="epoch"):
        chain.set_params(deepcluster__epoch=3)


def test_pandas_out(fitted, digits8):
    pandas = pytest.importorskip("pandas")
    model = pickle.loads(pickle.dumps(fitted)).set_output(transform="pandas")
    table = model.transform(digits8[0])
    assert isinstance(table, pandas.DataFrame) and table.columns[0] == "deepcluster0"


WRONG = {
    "method": ({"method": "kmeans"}, "use one of"),
    "profile": ({"profile": "weekend"}, "ci"),
    "clusters": ({"n_clusters": 81}, "2 to 80"),
    "one cluster": ({"n_clusters": 1}, "2 to 80"),
    "half a cluster": ({"n_clusters": 2.5}, "whole number"),
    "setting": ({"settings": {"widht": 4}}, "did you mean width"),
    "device": ({"device": "tpu"}, "device"),
    "epochs": ({"epochs": 0}, "epochs"),
    "size": ({"size": 4}, "8 or more"),
    "seed": ({"random_state": -1}, "seed"),
    "random state": ({"random_state": "zero"}, "zero"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_parameters_are_refused_in_fit(wrong, digits8):
    params, says = WRONG[wrong]
    model = tiny().set_params(**params)
    with pytest.raises(ValueError, match=says):
        model.fit(digits8[0])


# What images may be


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.01, 1.01, 255.0])
def test_floats_outside_are_refused(value, digits8, fitted):
    images = digits8[0].copy()
    images[3, 2, 1] = value
    for call in (tiny().fit, fitted.predict, fitted.transform):
        with pytest.raises(DeepClustError, match="not 0 to 1"):
            call(images)


def test_torchvision_sets(fitted, digits8, tmp_path):
    "FakeData makes random photos; ImageFolder reads a folder a class."
    from torchvision.datasets import FakeData, ImageFolder
    from torchvision.transforms import ToTensor

    for transform in (None, ToTensor()):
        photos = FakeData(20, (3, 12, 12), 4, transform)
        assert tiny().fit(photos).labels_.shape == (20,)
    for i, image in enumerate(digits8[0][:12]):
        place = tmp_path / "ab"[i % 2]
        place.mkdir(exist_ok=True)
        Image.fromarray((255 * image).round().astype(np.uint8)).save(place / f"{i:02}.png")
    found = fitted.predict(ImageFolder(tmp_path))  # opens them in colour
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    assert np.array_equal(found, fitted.labels_[order])
    assert np.array_equal(found, fitted.predict(tmp_path))


def test_a_broken_item_keeps_its_place(fitted, digits8):
    class Broken:
        def __len__(self):
            return 5

        def __getitem__(self, i):
            if i == 2:
                raise RuntimeError("disk on fire")
            return digits8[0][i], 0

    with pytest.warns(UserWarning, match="1 of 5.*disk on fire"):
        found = fitted.predict(Broken())
    assert found.tolist() == [*fitted.labels_[:2], -1, *fitted.labels_[3:5]]
    with pytest.warns(UserWarning):
        assert np.isnan(fitted.predict_proba(Broken())[2]).all()


def test_missing_files_are_said(fitted, tmp_path, pictures):
    folder = pictures(tmp_path / "some", 3)
    asked = [folder / "digit000.png", folder / "lost.png", folder / "digit002.png"]
    with pytest.warns(UserWarning, match=r"lost.png: No such file"):
        assert (fitted.predict(asked) == -1).tolist() == [False, True, False]
    with pytest.raises(DeepClustError, match="none of 1"):
        fitted.predict([folder / "lost.png"])


def test_sets_by_name(digits8):
    assert tiny().fit("digits").labels_.shape == (1797,)
    with pytest.raises(DeepClustError, match="did you mean digits"):
        tiny().fit("digit")


# Somebody else's file


class Bomb:
    "Writes a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_malicious_file_is_not_run(fitted, tmp_path):
    import hashlib
    import json

    fitted.save(tmp_path / "model.pt")
    torch.save({"w": Bomb(tmp_path / "boom")}, tmp_path / "model.pt")
    about = json.loads((tmp_path / "model.json").read_text())
    about["sha256"] = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(DeepClustError, match="nothing was loaded"):
        DeepCluster.load(tmp_path / "model.pt")
    assert not (tmp_path / "boom").exists()


def test_odd_parameters_of_a_file_are_passed_over(fitted, tmp_path):
    import json

    fitted.save(tmp_path / "model.pt")
    about = json.loads((tmp_path / "model.json").read_text())
    about["estimator"] |= {"labels_": [1], "fit": "x", "__class__": "os"}
    (tmp_path / "model.json").write_text(json.dumps(about))
    back = DeepCluster.load(tmp_path / "model.pt")
    assert np.array_equal(back.labels_, fitted.labels_) and callable(back.fit)


def test_the_command_line_reads_a_saved_file(deepclust, fitted, photos, tmp_path):
    fitted.save(tmp_path / "model.pt")
    done = deepclust("predict", tmp_path / "model.pt", photos, "--device", DEVICE)
    assert done.code == 0, done.err
    rows = [line.rsplit(",", 2) for line in done.out.splitlines()[1:]]
    assert [int(cluster) for _, cluster, _ in rows] == fitted.predict(photos).tolist()


def test_the_estimator_reads_an_exported_file(deepclust, photo_run, photos, tmp_path):
    assert deepclust("export", photo_run, tmp_path / "run.pt").code == 0
    run, light = (DeepCluster.load(p).set_params(**QUIET) for p in (photo_run, tmp_path / "run.pt"))
    assert run.method == light.method == "mmdc" and run.n_clusters == light.n_clusters == 4
    assert (run.predict(photos) != light.predict(photos)).sum() <= 1  # halved
