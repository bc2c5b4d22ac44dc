import re

from clip_train.embed import Row
from clip_train.page import confusion_table, write_template
from clip_train.search import Hit


def test_a_page_stands_alone_and_escapes_what_it_shows(tmp_path):
    path = tmp_path / "page.html"
    row = Row(shard="s", row=0, label=-1, key="7", caption="a <seven>")
    hits = [(Hit(0.5, row), None), (Hit(0.25, row), "data:image/png;base64,AAAA")]
    write_template(path, "clip_train", "search.html", query="<b>", asked=None, hits=hits, directory="here")
    page = path.read_text()
    assert "prefers-color-scheme: dark" in page  # the shared sheet is inside
    assert "{%" not in page
    assert "&lt;b&gt;" in page
    assert "a &lt;seven&gt;" in page
    assert not re.search(r"https?:|<link|@import", page)


def test_of_many_classes_the_first_are_drawn_and_the_commonest_confusions_of_all_are_listed():
    names = [f"class {i}" for i in range(50)]
    counts = [[10 * (i == j) for j in range(50)] for i in range(50)]
    counts[45][2], counts[3][49] = 6, 30
    table = confusion_table(names, counts)
    assert len(table["rows"]) == len(table["rows"][0]["cells"]) == 40
    assert table["cut"] == 10
    assert [(one["true"], one["predicted"], one["count"], one["share"]) for one in table["confused"]] == [
        ("class 3", "class 49", 30, 0.75),
        ("class 45", "class 2", 6, 0.375),
    ]
