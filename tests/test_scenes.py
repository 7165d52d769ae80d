"""What --input may name, and the table of how many scenes fared."""

import csv

import pytest

from eoseg.errors import SetupError
from eoseg.scenes import Index, maps_of, scenes_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of scenes to stand in."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.tif", "a.TIF", "c.vrt", "c.vrt.aux.xml", "notes.md", ".a.tif.part", "deep/d.tif", "deep/e.jp2", "odd[1].tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "list.txt").write_text("\ufeff# two places\n\na.TIF\r\ndeep/*.tif\n  b.tif \nnowhere.tif\n")
    (tmp_path / "deep/list.txt").write_text("d.tif\nb.tif\n")
    return tmp_path


@pytest.mark.parametrize("words, found, many", [
    (["b.tif"], ["b.tif"], False),
    (["c.vrt"], ["c.vrt"], False),
    (["nowhere.tif"], ["nowhere.tif"], False),  # opening it will say so
    (["odd[1].tif"], ["odd[1].tif"], False),  # a file's own name is no pattern
    (["/vsizip/x.zip/a*.tif", "https://host/a.tif"], ["/vsizip/x.zip/a*.tif", "https://host/a.tif"], True),
    (["b.tif", "a.TIF", "b.tif"], ["b.tif", "a.TIF"], True),
    (["deep"], ["deep/d.tif", "deep/e.jp2"], True),
    (["."], ["a.TIF", "b.tif", "c.vrt", "odd[1].tif"], True),
    (["deep/*"], ["deep/d.tif", "deep/e.jp2", "deep/list.txt"], True),
    (["**/d.tif"], ["deep/d.tif"], True),
    (["list.txt"], ["a.TIF", "deep/d.tif", "b.tif", "nowhere.tif"], True),
    (["deep/list.txt"], ["deep/d.tif", "b.tif"], True),  # beside the list, else from here
])
def test_a_word_stands_for_scenes(here, words, found, many):
    assert scenes_of(words) == (found, many)


@pytest.mark.parametrize("word, says", [("*.jp2", "nothing has such a name"), ("empty", "it holds no raster"), ("empty.txt", "it names no scene")])
def test_a_word_that_stands_for_none_is_refused(here, word, says):
    (here / "empty").mkdir()
    (here / "empty.txt").write_text("# nothing\n")
    with pytest.raises(SetupError, match=rf"^--input {word.replace('*', '.')}: {says}"):
        scenes_of([word])


def test_every_scene_has_a_map_of_its_own(tmp_path):
    assert {scene: path.name for scene, path in maps_of(["x/a.tif", "x/b.north.vrt"], tmp_path).items()} == {"x/a.tif": "a.tif", "x/b.north.vrt": "b.north.tif"}
    with pytest.raises(SetupError, match="x/a.tif and y/A.jp2 would both be mapped to .*A.tif"):
        maps_of(["x/a.tif", "y/A.jp2"], tmp_path)


def test_the_table_tells_how_each_scene_fared(tmp_path):
    index = Index(tmp_path, maps_of(["a.tif", "b.tif", "c.tif"], tmp_path))
    index.put("b.tif", "failed", error="b.tif: is empty, copy it again")
    index.put("a.tif", "mapped", 12.345, {"water": 0.25, "land": 0.75})
    rows = list(csv.DictReader((tmp_path / "index.csv").open(newline="")))
    assert [(row["scene"], row["map"], row["status"], row["seconds"], row["share_land"]) for row in rows] == [
        ("a.tif", "a.tif", "mapped", "12.3", "0.75"), ("b.tif", "b.tif", "failed", "", ""), ("c.tif", "c.tif", "waiting", "", "")]
    assert rows[1]["error"] == "b.tif: is empty, copy it again" and index.report() == "1 mapped, 1 failed"
    assert index.failures().startswith("1 of 3 scenes failed: b.tif; ")
