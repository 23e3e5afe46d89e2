from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.reports.made_records import made_exports, made_record, write_grid, write_run

FILES = {"index.html", "table.md", "table.csv", "table.tex", "differences.csv"}


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run ``python -m cap.report ...`` in this process; give exit code, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        from cap.report import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cap.report", *arguments])
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def runs(tmp_path) -> Path:
    folder = write_grid(tmp_path / "outputs", tasks=("qqp",), sparsities=(0.5, 0.9))
    write_run(folder / "failed", made_record(seed=8) | {"status": "failed", "error": "out of memory"})
    write_run(folder / "stopped", made_record(seed=9) | {"status": "interrupted", "error": "stopped from outside"})
    return folder


def test_a_report_holds_tables_pictures_and_a_page(command, runs, tmp_path):
    code, out, err = command("outputs", "--title", "Sixteen runs")
    assert (code, err) == (0, "")
    assert out == "16 completed runs of 8 configurations; 2 more are not in the table. report/index.html\n"
    drawn = {"score_against_sparsity.png", "ablation.png"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES | drawn
    page = (tmp_path / "report" / "index.html").read_text()
    assert "<h1>Sixteen runs</h1>" in page
    assert page.count("Not drawn: no record holds a measured export") == 2
    assert "CAP: SMP paper, Table 1" in page


def test_the_markdown_lists_what_is_left_out_with_its_reason(command, runs, tmp_path):
    command("outputs")
    text = (tmp_path / "report" / "table.md").read_text()
    table, _, rest = text.partition("## Differences")
    assert table.count("\n| qqp |") == 8
    assert (
        rest.partition("## Commands")[0].count("\n| qqp |") == 6
    )  # of two sparsities, the highest beside three others
    assert "| outputs/failed/record.json | failed: out of memory |" in rest
    assert "| outputs/stopped/record.json | interrupted: stopped from outside |" in rest


def test_links_of_the_page_lead_to_the_runs_from_wherever_the_report_lies(command, runs, tmp_path):
    command("outputs", "--output", "deep/inside/report")
    report = tmp_path / "deep" / "inside" / "report"
    text = (report / "index.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    links = [point["href"] for point in json.loads(text)["runs"]]
    assert len(links) == 16
    assert all((report / link / "record.json").is_file() for link in links)


def test_an_earlier_report_is_replaced_whole(command, runs, tmp_path):
    command("outputs")
    assert (tmp_path / "report" / "ablation.png").is_file()
    write_run(tmp_path / "one" / "0", made_record())
    assert command("one")[0] == 0
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES | {"score_against_sparsity.png"}


@pytest.mark.parametrize("name", ["notes.txt", "index.html", "table.csv"])
def test_a_folder_with_something_else_is_refused_and_untouched(command, runs, tmp_path, name):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / name).write_text("mine")
    code, _, err = command("outputs")
    assert code == 2
    assert err.startswith("error: --output must be a new or empty folder")
    assert [path.read_text() for path in (tmp_path / "report").iterdir()] == ["mine"]


def test_a_file_of_the_users_beside_a_report_keeps_it_from_being_replaced(command, runs, tmp_path):
    command("outputs")
    (tmp_path / "report" / "notes.txt").write_text("mine")
    code, _, err = command("outputs")
    assert (code, "notes.txt" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "the following arguments are required: DIR"),
        (("missing",), "every argument must be a folder that holds runs, got missing"),
        (("empty",), "there is no record.json below empty"),
        (("outputs", "--colour", "red"), "unrecognized arguments: --colour red"),
        (("outputs", "--output", "file"), "got file, a file"),
        (("outputs", "--output", "outputs"), "a folder with"),
    ],
    ids=["nothing", "missing", "empty", "option", "file", "input"],
)
def test_bad_input_is_one_line_and_exit_code_2(command, runs, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_report_on_failed_runs_alone_says_so(command, tmp_path):
    write_run(tmp_path / "outputs" / "0", made_record() | {"status": "failed", "error": "out of memory"})
    code, out, _ = command("outputs")
    assert (code, out) == (0, "0 completed runs of 0 configurations; 1 more is not in the table. report/index.html\n")
    assert "Not drawn: there is no completed run." in (tmp_path / "report" / "index.html").read_text()


def test_the_committed_records_make_a_report(command, tmp_path):
    records = Path(__file__).parents[1] / "benchmarks" / "records"
    code, _, err = command(str(records))
    assert (code, err) == (0, "")
    assert "| movement | all three | 0.9 |" in (tmp_path / "report" / "table.md").read_text()


def test_the_markdown_lists_exports_where_there_are_some(command, tmp_path):
    write_run(tmp_path / "outputs" / "0", made_record() | {"exports": made_exports(0.9)})
    command("outputs")
    exports = (tmp_path / "report" / "table.md").read_text().partition("## Exports")[2]
    assert [name in exports for name in ("| compact | 49.5 |", "| int8 | 22.0 |")] == [True, True]
