from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from cap.reports.collect import collect
from cap.reports.page import build_page, run_link
from cap.reports.published import published_for
from cap.reports.tables import COLUMNS, group_runs
from tests.reports.made_records import made_record, write_grid, write_run

VOID = {"meta", "input", "img", "br", "link"}
NASTY = "</script><b>&\"'$title"


class Page(HTMLParser):
    """Collect the elements of a page, and check that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag: str) -> list[str]:
        return [text for parent, text in self.texts if parent == tag]


def build(folder: Path, *, title: str = "Runs", pictures: dict[str, Any] | None = None) -> str:
    collection = collect([folder])
    groups = group_runs(collection.runs)
    return build_page(
        title=title,
        groups=groups,
        collection=collection,
        published=published_for([("qqp", "accuracy")]),
        pictures=pictures or {},
        folder=folder.parent / "report",
    )


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(text)


def test_the_table_has_a_row_for_each_configuration_and_a_title_for_each_column(tmp_path: Path) -> None:
    page = Page(build(write_grid(tmp_path / "runs", seeds=(1,))))
    assert len([row for row in page.attributes("tr") if "data-row" in row]) == 12
    heads = [head for head in page.attributes("th") if head.get("scope") == "col"]
    assert len(heads) >= len(COLUMNS)
    assert page.within("button") == [column.title for column in COLUMNS]


def test_a_point_for_each_run_leads_to_its_report_its_folder_or_its_record(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "with report", made_record(seed=1))
    (runs / "with report" / "report.md").touch()
    write_run(runs / "without", made_record(seed=2))
    (runs / "plain.json").write_text(json.dumps(made_record(seed=3)))
    points = {point["seed"]: point["href"] for point in data_of(build(runs))["runs"]}
    assert points == {1: "../runs/with%20report/report.md", 2: "../runs/without/", 3: "../runs/plain.json"}
    assert all((tmp_path / "report" / unquote(href)).resolve().exists() for href in points.values())


@pytest.mark.parametrize("name", ["a b", "50%", "javascript:alert(1)", "q?x=1#y"])
def test_a_link_survives_any_folder_name(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / name, made_record())
    link = run_link(folder / "record.json", tmp_path / "report")
    assert (tmp_path / "report" / unquote(link)).resolve() == folder.resolve()
    assert not set("?#: ") & set(link)


def test_points_and_rows_belong_together(tmp_path: Path) -> None:
    data = data_of(build(write_grid(tmp_path / "runs")))
    assert len(data["runs"]) == 24
    assert {point["row"] for point in data["runs"]} == set(range(12))
    assert all(0 <= point["line"] < len(data["lines"]) for point in data["runs"])
    assert data["panels"] == [{"task": "sst2", "metric": "accuracy"}]


def test_every_line_has_a_shape_that_the_script_draws(tmp_path: Path) -> None:
    page = build(write_grid(tmp_path / "runs"))
    shapes = re.search(r"const SHAPES = \[(.*?)\];", page, flags=re.DOTALL)[1]
    n_shapes = len(re.findall(r'"M[^"]+Z"', shapes))
    from cap.reports.style import MARKERS

    assert n_shapes == len(MARKERS)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG pixels")
    text = build(write_grid(tmp_path / "runs", tasks=("qqp",)), pictures={"One": ("Caption", picture)})
    page = Page(text)
    addresses = [
        value for _, found in page.elements for key, value in found.items() if key in ("src", "href") and value
    ]
    assert addresses
    assert all(re.match(r"data:|\.\./|(table\.(csv|md|tex)|differences\.csv)$", address) for address in addresses)
    assert not re.search(r"https?:|//[\w.]+\.\w+/|@import|url\(", text)
    assert page.attributes("link") == []
    (image,) = page.attributes("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == picture.read_bytes()


def test_a_browser_is_told_to_load_nothing_either(tmp_path: Path) -> None:
    page = Page(build(write_grid(tmp_path / "runs", seeds=(1,))))
    (policy,) = [meta["content"] for meta in page.attributes("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_text_of_a_record_cannot_become_markup_or_end_the_script(tmp_path: Path) -> None:
    record = made_record(task=NASTY) | {"model": NASTY, "warnings": [NASTY]}
    record["config"]["pruning"]["name"] = NASTY
    write_run(tmp_path / "runs" / "0", record)
    write_run(tmp_path / "runs" / "1", made_record(seed=2) | {"status": "failed", "error": NASTY})
    text = build(tmp_path / "runs", title=NASTY)
    page = Page(text)
    assert len(page.attributes("script")) == 2
    assert page.attributes("b") == []
    assert page.within("h1") == [NASTY]
    assert data_of(text)["runs"][0]["task"] == NASTY


def test_a_picture_that_was_not_drawn_says_why(tmp_path: Path) -> None:
    text = build(write_grid(tmp_path / "runs", seeds=(1,)), pictures={"Latency": ("no export.", None)})
    assert "Not drawn: no export." in Page(text).within("p")
    assert "<img" not in text


def test_what_is_not_in_the_table_is_listed_and_linked(tmp_path: Path) -> None:
    runs = write_grid(tmp_path / "runs", seeds=(1,))
    write_run(runs / "broken", made_record(seed=9) | {"status": "failed", "error": "out of memory"})
    page = Page(build(runs))
    assert "failed: out of memory" in page.within("td")
    assert "../runs/broken/" in [link["href"] for link in page.attributes("a")]


def test_controls_are_labelled_and_choices_are_those_of_the_rows(tmp_path: Path) -> None:
    text = build(write_grid(tmp_path / "runs", seeds=(1,)))
    page = Page(text)
    labels = re.findall(r"<label>[^<]+<(input|select)", text)
    assert len(labels) == len(page.attributes("input")) + len(page.attributes("select")) == 5
    assert {option["value"] for option in page.attributes("option")} == {
        "",
        "sst2",
        "magnitude",
        "movement",
        "none",
        "all three",
    }


def test_rows_carry_what_the_filters_compare_and_numbers_what_the_sort_does(tmp_path: Path) -> None:
    page = Page(build(write_run(tmp_path / "runs" / "0", made_record(score=0.8123)).parent))
    (row,) = [found for found in page.attributes("tr") if "data-row" in found]
    assert (row["data-task"], row["data-pruning"], row["data-contrast"]) == ("sst2", "movement", "all three")
    assert "0.8123" in [cell.get("data-value") for cell in page.attributes("td")]


def test_a_page_without_a_completed_run_is_a_page(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "0", made_record() | {"status": "failed", "error": "out of memory"})
    text = build(tmp_path / "runs")
    assert "0 completed runs of 0 configurations; 1 more is not in the table." in Page(text).within("p")
    assert data_of(text)["runs"] == []
