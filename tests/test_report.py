"""report.html: its numbers are those of the run, its text is escaped, it needs nothing else, and a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from command import SMALL, call

from cmi_fast import Recommender
from cmi_fast.data.simulate import simulate
from cmi_fast.models import CMI
from cmi_fast.report.charts import ticks
from cmi_fast.run import train_run
from cmi_fast.training.checkpoint import Evaluation
from cmi_fast.training.config import load_config

EVIL = "</script><script>console.error('evil')</script><b>&'\""
MODELS = ("cmi", "cmi-authors", "comirec-dr", "comirec-sa", "dssrec", "mind", "octopus")


class Page(HTMLParser):
    """The texts of elements with a ``data-key``, the addresses that a browser would load, and the names of elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.values: dict[str, str] = {}
        self.addresses: list[str] = []
        self.elements: list[str] = []
        self.json = ""
        self._key: str | None = None
        self._data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.elements.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data")]
        self._key = given.get("data-key")
        self._data = given.get("id") == "data"

    def handle_data(self, data: str) -> None:
        if self._key is not None:
            self.values[self._key] = data.strip()
            self._key = None
        if self._data:
            self.json, self._data = data, False


def read(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ids are text, some of them no text that one would wish for."""
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    frame, truth = simulate(users=90, items=150, days=6, plays_per_user=30)
    item, user = pl.col("item_id").cast(pl.String), pl.col("user_id").cast(pl.String)
    frame.with_columns(item + EVIL, user + EVIL).write_parquet(path)
    truth.select(item + EVIL, category="c" + pl.col("category").cast(pl.String) + EVIL).write_parquet(
        path.with_suffix(".c")
    )
    path.with_suffix(".c").rename(path.with_name("categories.parquet"))
    return path


@pytest.fixture(scope="module")
def trained(log: Path) -> Path:
    run = log.parent / "run"
    train_run(log, run, load_config(settings=SMALL[1::2]), item_categories=log.with_name("categories.parquet"))
    return run


def test_the_numbers_are_those_of_the_run(trained: Path) -> None:
    page, metrics = read(trained), json.loads((trained / "metrics.json").read_text())
    for key, result in {"cmi": metrics, **metrics["baselines"]}.items():
        for day in ("valid", "test"):
            for name, value in result[day].items():
                assert page.values[f"{day}.{key}.{name}"] == f"{value:.4f}"
    assert page.values["card.test.recall@50"] == f"{metrics['test']['recall@50']:.4f}"
    for name in ("nmi", "nmi_shuffled", "nmi_popularity"):
        assert page.values[f"categories.{name}"] == f"{metrics['categories'][name]:.4f}"


def test_every_baseline_is_drawn_in_a_colour_of_its_own(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    drawn = set(re.findall(r'class="level (l\d)"', text))
    colours = dict(re.findall(r"\.(l\d) { stroke: (#\w+)", text))
    assert len(drawn) == len(json.loads((trained / "metrics.json").read_text())["baselines"]) == 4
    assert len({colours[level] for level in drawn}) == 4
    assert dict(re.findall(r"\.line\.(l\d) { border-color: (#\w+)", text)).items() >= (
        colours.items() - {("l0", colours["l0"])}
    )


def test_the_diagnostics_are_those_of_the_model(trained: Path) -> None:
    values = read(trained).values
    recommender = Recommender.load(trained)
    ranker = recommender._trained()
    model = ranker.model
    assert isinstance(model, CMI)
    histories = recommender._histories
    played = histories.select(np.flatnonzero(histories.lengths))
    unit = F.normalize(model.pool(*ranker.padded(played)).detach().double(), dim=-1)
    cosines = torch.einsum("uid,ujd->uij", unit, unit).mean(0)
    count = len(cosines)
    for i in range(count):
        for j in set(range(count)) - {i}:
            assert float(values[f"cosine.{i}.{j}"]) == pytest.approx(cosines[i, j].item(), abs=0.0051)
    mean = (cosines.sum() - cosines.trace()) / (count * (count - 1))
    assert float(values["card.cosine"]) == pytest.approx(mean.item(), abs=0.0051)

    items, categories = F.normalize(model.items, dim=-1), F.normalize(model.categories, dim=-1)
    p = torch.softmax((items @ categories.T).double() / model.temperature, -1)
    entropy = -(p * p.log()).sum(-1).mean() / np.log(count)
    assert float(values["assignment.entropy"].removesuffix(" %")) == pytest.approx(100 * entropy.item(), abs=0.051)
    assert float(values["assignment.largest"]) == pytest.approx(p.amax(-1).mean().item(), abs=0.0051)
    sizes = [int(values[f"category.{k}.items"].replace(",", "")) for k in range(count)]
    assert sizes == torch.bincount(p.argmax(-1), minlength=count).tolist()

    shares = np.zeros(count)
    lists = recommender.recommend(k=50)
    vectors = dict(zip(recommender.item_ids, recommender.item_vectors(), strict=True))
    for user, group in lists.group_by("user_id"):
        interests = recommender.interests(list(user))[0]
        by = [int((interests @ vectors[item]).argmax()) for item in group["item_id"]]
        shares += np.bincount(by, minlength=count) / len(by) / lists["user_id"].n_unique()
    for k in range(count):
        assert float(values[f"share.{k}"].removesuffix(" %")) == pytest.approx(100 * shares[k], abs=0.051)


def test_what_is_drawn_of_users(trained: Path) -> None:
    drawn = json.loads(read(trained).json)["map"]
    recommender = Recommender.load(trained)
    assert len(drawn["users"]) == 12
    for user in drawn["users"]:
        wanted = recommender.recommend([user["id"]], k=20)["item_id"].to_list()
        assert [drawn["ids"][place] for place in user["list"]] == wanted
        row = recommender.user_ids.tolist().index(user["id"])
        history = recommender.item_ids[recommender._histories[row]][-40:].tolist()
        assert [drawn["ids"][place] for place in user["history"]] == history
    items = F.normalize(recommender._trained().model.items.detach(), dim=-1)
    vectors = dict(zip(recommender.item_ids, items.numpy(), strict=True))
    centred = np.stack(list(vectors.values())).astype(np.float64) - np.mean(list(vectors.values()), axis=0)
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    assert drawn["share"] == pytest.approx(values[:2].sum() / values.sum(), rel=1e-6)
    places = np.array(drawn["xy"])
    projected = centred @ np.linalg.svd(centred)[2][:2].T
    order = {item: row for row, item in enumerate(vectors)}
    expected = projected[[order[item] for item in drawn["ids"]]]
    assert np.abs(places) == pytest.approx(np.abs(expected), abs=0.0011)


def test_user_text_is_escaped_and_nothing_is_loaded(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<b>&" not in text and EVIL not in text
    assert page.elements.count("script") == 2
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", text)
    assert len(text) < 500_000


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_a_report(log: Path, tmp_path: Path, model: str) -> None:
    settings = [*SMALL[1::2], f"model={model}", "epochs=1", "interests=3"]
    train_run(log, tmp_path / "run", load_config(settings=settings))
    page = read(tmp_path / "run")
    assert f"test.{model}.recall@50" in page.values and "share.2" in page.values
    assert ("assignment.entropy" in page.values) == model.startswith("cmi")
    assert "card.nmi" not in page.values


def test_of_an_existing_run(trained: Path, log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    before = (run / "report.html").read_text()
    (run / "report.html").unlink()
    code, out, err = call(capsys, "report", run)
    assert code == 0 and out == f"{run / 'report.html'}\n", err
    assert (run / "report.html").read_text() == before
    few = tmp_path / "few.parquet"
    pl.read_parquet(log).filter(pl.col("user_id").str.starts_with("7")).write_parquet(few)
    code, _, err = call(capsys, "report", run, "--data", few)
    assert code == 0, err
    ids = {user["id"] for user in json.loads(read(run).json)["map"]["users"]}
    assert ids and all(user.startswith("7") for user in ids)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found none; they are written when training ends"),
        ("{", "not as training writes it"),
        ("[]", "not as training writes it"),
        ('{"model": "x"}', "not as training writes it: model"),
    ],
)
def test_damaged_metrics(
    trained: Path, tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "report.html").unlink()
    (run / "metrics.json").unlink()
    if content is not None:
        (run / "metrics.json").write_text(content)
    code, _, err = call(capsys, "report", run)
    assert code == 2 and "metrics.json" in err and message in err and err.count("\n") == 1
    assert not (run / "report.html").exists()


def test_other_bad_arguments(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / "report.html").read_bytes()
    for arguments, message in (
        (["nowhere"], "nowhere: expected the folder of a trained model, found none"),
        ([trained, "--item-categories", tmp_path / "none.csv"], "none.csv: cannot be read"),
        ([trained, "--data", tmp_path / "none.csv"], "none.csv: no such file"),
    ):
        code, _, err = call(capsys, "report", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1
    assert (trained / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0), (5, 5), (-3, 2), (0.0639, 0.1616), (1e-9, 2e-9), (1e6, 3e6), (7.1, 7.10001)]
)
def test_ticks(low: float, high: float) -> None:
    rows = ticks(low, high)
    assert rows == sorted(set(rows)) and 2 <= len(rows) <= 7
    assert rows[0] <= low + 1e-9 * abs(low) and rows[-1] >= high - 1e-9 * abs(high)


def test_without_a_test_part(log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_run(log, run, load_config(settings=[*SMALL[1::2], "epochs=1"]), evaluation=Evaluation(test=False))
    page = read(run)
    assert "card.valid.recall@50" in page.values and "valid.item_knn.ndcg@10" in page.values
    assert not any(key.startswith(("test.", "card.test")) for key in page.values)


def test_with_the_share_term_and_a_temperature_of_the_assignment(log: Path, tmp_path: Path) -> None:
    """Retrieval vectors have a coordinate more than item vectors and interests."""
    settings = [*SMALL[1::2], "epochs=1", "share_weight=1.0", "assignment_temperature=10.0"]
    train_run(log, tmp_path / "run", load_config(settings=settings))
    values = read(tmp_path / "run").values
    assert float(values["assignment.entropy"].removesuffix(" %")) > 99.5
    assert -1 <= float(values["card.cosine"]) <= 1


BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


def browse(page: Path, tmp_path: Path, width: int, fragment: str = "") -> tuple[str, str]:
    """The page as the browser has it after its scripts, and what it printed."""
    assert BROWSER is not None
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    done = subprocess.run(
        [
            BROWSER,
            *options.split(),
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900",
            "--dump-dom",
            f"{page.as_uri()}{fragment}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no browser installed")
@pytest.mark.parametrize("width", [1280, 500])
def test_in_a_browser(trained: Path, tmp_path: Path, width: int) -> None:
    drawn = json.loads(read(trained).json)["map"]
    user = drawn["users"][3]
    shown, printed = browse(trained / "report.html", tmp_path, width, f"#user={quote(user['id'])}")
    assert "CONSOLE" not in printed, printed
    svg = shown[shown.index('<svg id="map"') :].split("</svg>")[0]
    assert svg.count("<circle") == drawn["background"] + len(user["history"])
    assert svg.count("<rect") == len(user["list"])


@pytest.mark.skipif(BROWSER is None, reason="no browser installed")
def test_an_error_in_the_browser_would_show(trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    text = (trained / "report.html").read_text()
    broken.write_text(text.replace('"use strict";', '"use strict"; nothing();'))
    assert "CONSOLE" in browse(broken, tmp_path, 1280)[1]
