"""The colours of a map by the user's own file, its styles for QGIS, its card, and how GDAL's own tool sees it."""

import json
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
import tinynet
from conftest import write_raster

from eoseg import legends, plots
from eoseg.errors import SetupError

NAMES = ["water", "Open Forest", "class 1"]
BLUE, GREEN, RED = (51, 120, 200), (20, 110, 50), (205, 70, 80)


def palette(folder, text, names=NAMES, name="colours.txt", **settings):
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return legends.palette_of(names, file, **settings)


# ---------------------------------------------------------------- palette files


@pytest.mark.parametrize("text", [
    "water #3378c8\nOpen Forest #146e32\nclass 1 #CD4650\n",
    "# ours\n\n0: 51 120 200\n1 = 20,110,50\nclass 1, 205, 70, 80   # spoilt\n",
    "water=#3378c8\r\nopen forest\t20\t110\t50\r\n2 205 70 80",
    "0 51 120 200 255 a\n1 20 110 50 255 b\n2 205 70 80 255\n",
    "# QGIS Generated Color Map Export File\nINTERPOLATION:EXACT\n0,51,120,200,255,\n1,20,110,50,255,Wald, licht\n2.0,205,70,80,255,gone\n",
    "nv 0 0 0 0\n2 51 120 200 255 water\n0 20 110 50 255 Open Forest\n12 205 70 80 255 class 1\n",  # of other numbers: the labels count
    "\ufeffwater #3378c8\n\"Open Forest\", 20, 110, 50\n'class 1': 205 70 80\n",
])
def test_a_palette_file_may_be_written_in_many_ways(tmp_path, text):
    assert palette(tmp_path, text, say=pytest.fail) == [BLUE, GREEN, RED]


def test_a_palette_file_may_be_json(tmp_path):
    assert palette(tmp_path, '{"class 1": "#cd4650", "0": "51 120 200", "open forest": [20, 110, 50]}', name="colours.JSON") == [BLUE, GREEN, RED]


def test_numbers_are_those_of_the_map_and_a_name_counts_before_a_number(tmp_path):
    assert palette(tmp_path, "11 51 120 200\n42 20 110 50\n7 205 70 80", numbers=[11, 42, 7]) == [BLUE, GREEN, RED]
    assert palette(tmp_path, "1 51 120 200\n0 20 110 50\n2 205 70 80", names=["1", "0", "wood"]) == [BLUE, GREEN, RED]
    assert palette(tmp_path, "Wood 51 120 200\nwood 20 110 50\nWOOD 205 70 80", names=["Wood", "wood", "WOOD"]) == [BLUE, GREEN, RED]


def test_classes_without_a_colour_get_defaults_that_no_other_class_has(tmp_path):
    names = ["lake", "water", "one", "two"]
    found = palette(tmp_path, "lake #3378c8\ntwo 51 34 136", names)  # what water and the first of the palette would have had
    assert (found[0], found[3]) == (BLUE, (51, 34, 136)) and len(set(found)) == 4
    assert legends.palette_of(names) == plots.colours(names)


def test_a_class_that_the_map_does_not_have_is_said(tmp_path):
    said = []
    assert palette(tmp_path, "water #3378c8\nlava 9 9 9\n8 0 0 0 0 ash\n", say=said.append)[0] == BLUE
    assert said == [f"note: --palette {tmp_path}/colours.txt: the map has no class lava, ash"]


@pytest.mark.parametrize("text, wanted", [
    ("water #3378c8\n\nforest green\n", "line 3 (forest green) is not a class and its colour; write a line per class, such as `water #3378c8`"),
    ("water #3378c\n", "line 1 (water #3378c) is not"),
    ("51 120 200\n", "line 1 (51 120 200) is not"),
    ("water 51 256 200\n", "line 1 has the colour 51 256 200; its parts must lie between 0 and 255."),
    ("0 51 120 200\n1 -1 0 0 255 x\n", "line 2 has the colour -1 0 0;"),
    ("water #3378c8\n#\n0 1 2 3\n", "line 3 gives class water a colour again, after line 1; keep one of them."),
    ("", "gives no colours; write a line per class"),
    ("# water #3378c8\n", "gives no colours; write"),
    ("größe 1 2 3".encode("latin-1"), "is not text in UTF-8; save it as such."),
])
def test_an_unclear_palette_file_is_one_error_that_names_the_line(tmp_path, text, wanted):
    with pytest.raises(SetupError) as error:
        palette(tmp_path, text)
    assert str(error.value).startswith(f"--palette {tmp_path}/colours.txt: {wanted}")


@pytest.mark.parametrize("text, wanted", [
    ('{"water": "#3378c8",}', "is not readable as JSON ("),
    ('["#3378c8"]', "is not a list of names with colours; write {"),
    ('{"water": "blue"}', '"water" has no colour (blue); write "#rrggbb".'),
    ('{"water": [1, 2, 300]}', '"water" has the colour 1 2 300;'),
    ('{"water": "#3378c8", "water": "#3378c9"}', '"water" gives class water a colour again, after "water";'),
    ("{}", "gives no colours;"),
])
def test_an_unclear_json_palette_is_one_error_that_names_the_entry(tmp_path, text, wanted):
    with pytest.raises(SetupError) as error:
        palette(tmp_path, text, name="c.json")
    assert str(error.value).startswith(f"--palette {tmp_path}/c.json: {wanted}") and "\n" not in str(error.value)


def test_a_palette_file_that_is_not_there_is_an_error(tmp_path):
    for file in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(SetupError, match=f"--palette {file}: .*; check the path"):
            legends.palette_of(NAMES, file)


# ---------------------------------------------------------------- beside the map


def test_the_qgis_style_has_an_entry_per_class(tmp_path):
    names = ['sea & "ice" <1>', "Wald's Ende", "größer"]
    legends.write_qml(tmp_path / "map.qml", names, [BLUE, GREEN, RED], [11, 42, 300])
    tree = ElementTree.parse(tmp_path / "map.qml")
    renderer = tree.find("pipe/rasterrenderer")
    assert tree.getroot().tag == "qgis" and (renderer.get("type"), renderer.get("band"), renderer.get("alphaBand")) == ("paletted", "1", "-1")
    found = [tuple(entry.get(key) for key in ("value", "color", "alpha", "label")) for entry in renderer.iterfind("colorPalette/paletteEntry")]
    assert found == [("11", "#3378c8", "255", names[0]), ("42", "#146e32", "255", names[1]), ("300", "#cd4650", "255", names[2])]


def test_the_style_of_a_share_runs_from_dark_at_0_to_bright_at_1(tmp_path):
    legends.write_qml_ramp(tmp_path / "sure.qml", "confidence <all>")
    renderer = ElementTree.parse(tmp_path / "sure.qml").find("pipe/rasterrenderer")
    ramp = renderer.find("rastershader/colorrampshader")
    assert renderer.get("type") == "singlebandpseudocolor" and [float(ramp.get(key)) for key in ("minimumValue", "maximumValue")] == [0, 1]
    items = [(float(item.get("value")), item.get("label"), sum(bytes.fromhex(item.get("color")[1:]))) for item in ramp.iterfind("item")]
    assert items == sorted(items) and items[0][:2] == (0, "confidence <all> 0") and items[-1][:2] == (1, "confidence <all> 1")
    assert [item[2] for item in items] == sorted(item[2] for item in items)  # ever brighter


def test_the_card_tells_what_the_map_holds_and_how_it_was_made(tmp_path):
    summary = {"valid_pixels": 40, "total_pixels": 50, "confidence": {"mean": 0.75, "p5": 0.5, "p50": float("nan")},
               "classes": {"water": {"pixels": 30, "share": 0.75, "hectares": 0.3}, "größer": {"pixels": 10, "share": 0.25, "hectares": None}}}
    about = {"numbers": np.array([11, 42]), "palette": [BLUE, (1, 2, 3)], "settings": {"patch_size": 64},
             "models": [{"path": "runs/a.pth", "name": "unet", "sha256": "ab"}],
             "scene": {"name": "s.tif", "size": [5, 10], "crs": "EPSG:32630", "pixel_size": [10.0, 10.0]}}
    legends.write_card(tmp_path / "map.json", summary, about)
    card = json.loads((tmp_path / "map.json").read_text(encoding="utf-8"))
    assert card["classes"] == {"water": {"number": 11, "pixels": 30, "share": 0.75, "hectares": 0.3, "colour": "#3378c8"},
                               "größer": {"number": 42, "pixels": 10, "share": 0.25, "hectares": None, "colour": "#010203"}}
    assert (card["format"], card["valid_pixels"], card["total_pixels"], card["confidence"]) == (1, 40, 50, {"mean": 0.75, "p5": 0.5, "p50": None})
    assert (card["model"], card["settings"], card["scene"]) == (about["models"], about["settings"], about["scene"])


# ---------------------------------------------------------------- as other programs see it


@pytest.mark.skipif(not shutil.which("gdalinfo"), reason="needs GDAL's gdalinfo")
def test_gdalinfo_finds_colours_names_overviews_nodata_and_layout(tmp_path):
    names = ["water", "tree & <bush>", "größer"]
    pixels = np.indices((600, 1100))[1].astype("float32") % 3
    pixels[:, :9] = -1
    scene = write_raster(tmp_path / "scene.tif", pixels, nodata=-1)
    network = tinynet.by_hand(tmp_path, tinynet.Function(tinynet.remainder(3)), classes=3, class_names=names)
    tinynet.mapped(network, scene, tmp_path / "map.tif", patch_size=512)
    out = subprocess.run(["gdalinfo", "-json", str(tmp_path / "map.tif")], capture_output=True, check=True, timeout=60).stdout
    seen = json.loads(out)
    band = seen["bands"][0]
    assert seen["size"] == [1100, 600] and (band["type"], band["noDataValue"], band["colorInterpretation"]) == ("Byte", 255, "Palette")
    assert [tuple(entry) for entry in band["colorTable"]["entries"][:3]] == [(*colour, 255) for colour in plots.colours(names)]
    assert band["categories"] == names
    assert seen["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG" and band["block"] == [512, 512]
    assert [part["size"] for part in band["overviews"]] == [[550, 300], [275, 150]]
