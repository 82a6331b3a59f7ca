"""The tables of figures on the pages are those that the benchmarks print for their records."""

import pytest

from benchmarks import pages


def test_every_page_has_the_tables_of_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert pages.main(["--check"]) == 0, (
        f"run python benchmarks/pages.py: {capsys.readouterr().out}"
    )


def test_every_table_stands_on_a_page() -> None:
    text = "".join(page.read_text() for page in pages.pages())
    assert all(f"<!-- record: {name} -->" in text for name in pages.TABLES)


def test_an_edited_figure_is_put_right_and_all_else_stays() -> None:
    page = next(page for page in pages.pages() if page.name == "benchmarks.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| ours_n4 |"))
    assert pages.rendered(page.replace(row, row.replace("439", "39"))) == page


def test_a_table_that_does_not_exist_is_refused() -> None:
    with pytest.raises(
        pages.PageError, match="no table is called 'nothing': choose one of headline"
    ):
        pages.rendered("<!-- record: nothing -->\n<!-- end -->")
