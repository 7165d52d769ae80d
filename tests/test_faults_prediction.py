"""Prediction as an unlucky user would run it: a map that is right, or one line and nothing under a final name."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import torch
from conftest import coded, write_raster
from cutouts import square, write_vector
from faults import assert_refused, assert_worked
from littlemaps import NAMES, folder_of_a_scene, nearest, prediction, right  # noqa: F401 (fixtures)
from tinynet import Point, opened, save

SIDES = ("confidence.tif", "probabilities.tif", "uncertainty.tif", "quicklook.png")
BESIDE = [f"--{'save_' * (not name.startswith('q'))}{name.partition('.')[0]}" for name in SIDES]


# ---------------------------------------------------------------- flags

REFUSED = {  # words -> parts of the line
    "--overlap 16": ["--overlap 16", "smaller than --patch_size 16"], "--overlap -1": ["--overlap", "-1"], "--patch_size 0": ["--patch_size", "0 is not"], "--patch_size 1e3": ["--patch_size", "1e3"],
    "--threshold nan": ["--threshold", "nan"], "--threshold -0.1": ["--threshold", "-0.1"], "--threshold 0.4": ["--threshold", "has 4 classes"],
    "--background_value 1": ["--background_value", "has 4 classes"], "--temperature 0": ["--temperature"], "--temperature 1e30": ["--temperature"], "--temperature nan": ["--temperature"], "--temperature inf": ["--temperature"],
    "--output_nodata 2": ["--output_nodata 2", "is a class (tree); give 255"], "--output_nodata -1": ["--output_nodata", "-1"], "--output_nodata 1.5": ["--output_nodata", "1.5"],
    "--output_nodata nan": ["--output_nodata", "nan"], "--output_nodata 65536": ["--output_nodata 65536", "at most 65535"], "--input_nodata -1": ["--input_nodata -1", "no pixel", "uint16"],
    "--input_nodata nan": ["--input_nodata nan", "no pixel"], "--input_nodata 0.5": ["--input_nodata 0.5", "no pixel"],
    "--max_memory 1MB": ["--max_memory 1.0 MB", "narrowest strip", "--patch_size"], "--max_memory 0": ["--max_memory", "no size"], "--max_memory -1": ["--max_memory", "no size"],
    "--max_memory lots": ["--max_memory", "no size"], "--max_memory 1e99GB": ["--max_memory", "no size"], f"--max_memory {'9' * 400}GB": ["--max_memory", "no size"],
    "--batch_size 0": ["--batch_size", "0 is not"], "--batch_size x": ["--batch_size"], "--tta all": ["--tta", "all"], "--blend hard": ["--blend", "hard"],
    "--bands 2": ["s.tif", "no band 2"], "--bands 0": ["s.tif", "no band 0"], "--bands -1": ["s.tif", "no band -1"], "--bands x": ["s.tif", "no band x"], "--bands 1.0": ["s.tif", "no band 1.0"],
    "--bands ²": ["s.tif", "no band ²"], "--bands 1 1": ["--bands", "names 2 bands"], "--polygons map.shp": ["--polygons map.shp", "no format"], "--polygons .": ["--polygons .", "no format"],
    "--polygons m.pth": ["--polygons m.pth", "no format"], "--polygons map.tif": ["--polygons map.tif", "no format"], "--polygons /vsimem/a.gpkg": ["--polygons", "no format"],
    "--polygons .gpkg --simplify nan": ["--simplify", "nan"], "--polygons .gpkg --sieve -1": ["--sieve", "-1"], "--polygons .gpkg --min_area inf": ["--min_area", "inf"],
    "--sieve 3": ["--sieve", "--polygons"], "--vector_crs image": ["--vector_crs", "--aoi"], "--probability_dtype float32": ["--probability_dtype", "--save_probabilities"],
    "--device cuda:-1": ["--device cuda:-1", "no such kind"], "--device meta": ["--device meta", "no such kind"], "--device xpu": ["--device xpu", "no such kind"], "--in_channels 3": ["--in_channels 3", "m.pth says 1"],
    "--num_classes 5": ["--num_classes 5", "m.pth says 4"], "--num_classes 0": ["--num_classes", "0 is not"], "--model_name fpn": ["--model_name fpn", "m.pth says unet-dropout"],
    "--encoder_name vgg11": ["--encoder_name vgg11", "m.pth says resnet34"], "--normalize_per_channel": ["--normalize_per_channel", "statistics"], "--resample_to_training": ["--resample_to_training", "m.pth"],
    "--resume --overwrite": ["--resume and --overwrite"], "--palette none.txt": ["--palette none.txt", "No such file"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_flag_that_cannot_be_is_refused(predict, words):
    assert_refused(predict(*words.split()), *REFUSED[words])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:99"])
def test_cuda_asked_for_and_absent_is_no_silent_cpu(predict, device):
    assert_refused(predict("--device", device), f"--device {device}: this machine offers 0 CUDA devices", "--device auto or cpu")


@pytest.mark.parametrize("flag", ["model", "input", "output"])
def test_an_unset_variable_of_the_shell_is_not_the_folder_one_is_in(predict, flag):
    assert_refused(predict(**{flag: ""}), f"--{flag}: is empty", "name a path")


@pytest.mark.parametrize("flag", ["--polygons", "--aoi", "--palette", "--device", "--max_memory"])
def test_an_empty_word_is_not_a_flag_left_out(predict, flag):
    assert_refused(predict(flag, ""), f"error: {flag}")


@pytest.mark.parametrize("words", [["--patch_size", 1, "--overlap", 0], ["--patch_size", 10**11], ["--batch_size", 10**20], ["--batch_size", 1000], ["--max_memory", "900GB"], ["--output_nodata", 256],
                                   ["--output_nodata", 65535], ["--resume"], ["--temperature", 20]], ids=str)
def test_odd_but_possible_sizes_give_the_same_map(predict, words):
    assert_worked(predict(*words))
    assert right()


# ---------------------------------------------------------------- many classes


@pytest.mark.parametrize("classes, nodata, dtype", [(255, 255, "uint8"), (256, 256, "uint16"), (257, 65535, "uint16"), (300, 65535, "uint16")])
def test_more_classes_than_a_byte_holds(predict, classes, nodata, dtype):
    values = np.random.default_rng(0).permutation(40 * 48).reshape(1, 40, 48) % classes
    values[0, 0, 0] = 999
    write_raster("many.tif", values.astype("uint16"), nodata=999)
    save("many.pth", nearest(classes), bands=1, outputs=classes)
    if classes > 255:
        assert_refused(predict(model="many.pth", input="many.tif"), "--output_nodata 255: is a class (class_255); give ")
    assert_worked(predict("--output_nodata", nodata, "--save_confidence", "--polygons", ".gpkg", model="many.pth", input="many.tif"))
    values[0, 0, 0] = nodata
    assert (opened("map.tif") == values[0]).all() and opened("map.tif").dtype == dtype
    assert sum(part["pixels"] for part in json.loads(Path("map.json").read_text())["classes"].values()) == 40 * 48 - 1


def test_more_classes_than_a_map_numbers_are_refused(predict):
    save("many.pth", Point(1, 65536), bands=1, outputs=65536)
    assert_refused(predict(model="many.pth"), "many.pth: ", "num_classes is 65536", "from 1 to 65535")


# ---------------------------------------------------------------- outputs

ITSELF = {"s.tif": [], "./../{}/s.tif": [], "link.tif": [lambda: os.symlink("s.tif", "link.tif")], "hard.tif": [lambda: os.link("s.tif", "hard.tif")]}


@pytest.mark.parametrize("words", [(), ("--overwrite",), ("--resume",)])
@pytest.mark.parametrize("output", ITSELF)
def test_the_input_is_never_written_over(predict, tmp_path, output, words):
    for prepare in ITSELF[output]:
        prepare()
    assert_refused(predict(*words, output=output.format(tmp_path.name)), "--output", "is the input itself; name another file")


def test_neither_is_anything_else_that_is_read(predict):
    os.rename("m.pth", "m.tif")
    assert_refused(predict("--overwrite", model="m.tif", output="m.tif"), "m.tif: is read and would be written")
    Path("map.json").write_text('{"water": "#112233"}')
    assert_refused(predict("--overwrite", "--palette", "map.json", model="m.tif"), "map.json: is read and would be written")
    write_vector("map.gpkg", [square(4, 4)])
    assert_refused(predict("--overwrite", "--aoi", "map.gpkg", "--polygons", ".gpkg", model="m.tif"), "map.gpkg: is read and would be written")


@pytest.mark.parametrize("name", ["map.tif", "map.qml", "map.json", "map_confidence.tif", "map_patches", "map.gpkg", "map_quicklook.png"])
@pytest.mark.parametrize("folder", [False, True])
def test_what_lies_there_stays_unless_told(predict, name, folder):
    Path(name).mkdir() if folder else Path(name).write_bytes(b"mine")
    fate = predict("--save_confidence", "--save_patches", "--polygons", ".gpkg", "--quicklook")
    if (name, folder) == ("map.tif", True):
        assert_worked(fate)
        assert right("map.tif/s.tif")  # a folder that exists gets the map
    else:
        assert_refused(fate, name, "move it away" if folder != (name == "map_patches") else "--overwrite")


IN_THE_WAY = ["map.qml", "map.json", "map.gpkg", "map.tif.aux.xml", *(f"map_{name}" for name in SIDES), "map_confidence.qml", "map_confidence.tif.aux.xml", ".map.tif.part", ".map.qml.part", ".map.tif.lock",
              ".map.tif.journal.part", ".map.tif.classes.part", ".map.tif.confidence.part", ".map_confidence.tif.part"]


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_folder_where_a_file_goes_is_said_before_the_work(predict, name):
    Path(name).mkdir()
    assert_refused(predict("--overwrite", *BESIDE, "--polygons", ".gpkg"), name)


def test_tiles_need_a_folder_and_leave_what_others_put_there(predict):
    Path("map_patches").write_bytes(b"mine")
    assert_refused(predict("--save_patches", "--overwrite"), "map_patches: is a file", "move it away")
    Path("map_patches").unlink()
    Path("map_patches").mkdir()
    for name in ("patch_0_0.tif", "patch_99_99.tif", "patch_mine.tif", "notes.txt"):
        Path("map_patches", name).write_bytes(b"mine")
    assert_worked(predict("--save_patches", "--overwrite", may_change=r"patch_\d+_\d+"))
    assert (opened("map_patches/patch_0_0.tif") == coded(16, 16, 1)[0] % 4).all()
    assert not Path("map_patches/patch_99_99.tif").exists()


@pytest.mark.parametrize("output, words", [("s.tif/map.tif", "a folder is needed"), ("/vsimem/map.tif", "written to disks"), ("s3://bucket/map.tif", "written to disks"), ("-", "GeoTIFFs"),
                                           ("/dev/null", "GeoTIFFs"), ("x" * 300 + ".tif", "too long"), ("map.png", "GeoTIFFs"), (".", "is the input itself")])
def test_an_output_that_cannot_be_is_refused(predict, output, words):
    assert_refused(predict(output=output), words)


def test_a_missing_folder_is_made_and_a_link_that_leads_nowhere_is_a_map_that_is_there(predict):
    assert_worked(predict(output="deep/er/map.tif"))
    os.symlink("nowhere/x.tif", "map.tif")
    assert_refused(predict(), "map.tif there already", "--overwrite")
    assert_worked(predict("--overwrite", may_change="map.tif"))
    assert right() and right("deep/er/map.tif") and not Path("map.tif").is_symlink()


def test_what_a_link_leads_to_is_not_written_through(predict):
    Path("victim").write_bytes(b"v" * 40 * 48)
    for name in (".map.tif.classes.part", ".map.tif.journal.part", ".map.tif.part", ".map.json.part"):
        os.symlink("victim", name)
    assert_worked(predict("--resume", may_change=r"\.part$"))
    assert right() and Path("victim").read_bytes() == b"v" * 40 * 48


# ---------------------------------------------------------------- areas of interest and palettes

INSIDE, INNER = square(4, 4, 8), np.s_[4:12, 4:12]
BOW = shapely.Polygon([(500040, 4799960), (500120, 4799880), (500120, 4799960), (500040, 4799880)])
GEOJSON = '{"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[%s]]}}]}'


def layer(shapes=(INSIDE,), **settings):
    return lambda: write_vector("a.gpkg", shapes, **settings)


def halved():
    content = Path(layer()()).read_bytes()
    Path("a.gpkg").write_bytes(content[: len(content) // 2])


AREAS = {  # fault -> what makes the file, words of the line; None where the area is the eight pixels square all the same
    "of no CRS": (layer(crs=None), None), "in degrees": (layer(to="EPSG:4326"), None), "one without a shape": (layer([None, INSIDE]), None),
    "missing": (lambda: None, "no such file"), "empty": (lambda: Path("a.gpkg").touch(), "cannot be read"), "a folder": (lambda: Path("a.gpkg").mkdir(), "cannot be read"),
    "noise": (lambda: Path("a.gpkg").write_bytes(bytes(range(256)) * 9), "cannot be read"), "half": (halved, "cannot be read"), "a raster": (lambda: os.link("s.tif", "a.gpkg"), "cannot be read"),
    "no polygon": (layer([None]), "holds no polygon"), "points": (layer([shapely.Point(500040, 4799960)]), "holds Point where polygons"), "elsewhere": (layer([square(4000, 4)]), "lies beside"),
    "touching": (layer([square(40, 0)]), "lies beside"), "of a wrong CRS": (layer(crs="EPSG:32631"), "--vector_crs"),
    "of huge numbers": (lambda: Path("a.gpkg").write_text(GEOJSON % "[1e300, 0], [1, 0], [1, 1], [1e300, 0]"), "a.gpkg: "), "NaN": (lambda: Path("a.gpkg").write_text(GEOJSON % "[NaN, 0], [1, 0], [1, 1], [NaN, 0]"), "a.gpkg: "),
}


@pytest.mark.parametrize("fault", AREAS)
def test_an_area_of_interest_is_the_one_that_was_drawn_or_refused(predict, fault):
    prepare, words = AREAS[fault]
    prepare()
    fate = predict("--aoi", "a.gpkg")
    if words:
        return assert_refused(fate, "a.gpkg: ", words)
    assert_worked(fate)
    assert right(where=INNER) and (opened("map.tif") != 255).sum() == 64


def test_an_area_that_crosses_itself_holds_what_it_encloses(predict):
    layer([BOW])()
    assert_worked(predict("--aoi", "a.gpkg"))
    rows, cols = np.nonzero(opened("map.tif") != 255)
    assert 24 <= len(rows) <= 40 and (abs(cols - 7.5) >= abs(rows - 7.5) - 1).all()  # two triangles, side by side or one above the other


def test_an_area_between_the_centres_of_pixels_is_none(predict):
    layer([square(4.1, 4.1, 0.2)])()
    assert_worked(predict("--aoi", "a.gpkg"), "warning: ", "no valid pixel")
    assert (opened("map.tif") == 255).all()


def colours():
    with rasterio.open("map.tif") as src:
        return [src.colormap(1)[number][:3] for number in range(4)]


PALETTES = {"": "gives no colours", "lots of words": "line 1 (lots of words) is not a class", "water -1 2 3": "between 0 and 255", "water 300 2 3": "between 0 and 255", "water #123": "is not a class",
            "water #112233\n0 #223344": "gives class water a colour again", "0 " + "9" * 5000 + " 1 1": "is not a class", "a " * 9000 + "x": "is not a class",
            "\x00\x01\x02": "is not a class", "json[1]": "is not a list of names", "json5": "is not a list of names", 'json{"water": null}': '"water" has no colour', 'json{"water": [1, 2, 3, 4]}': "has no colour",
            'json{"water": [NaN, 2, 3]}': "has no colour", 'json{"water": "#112233", "WATER": "#112233"}': "a colour again", "json" + "[" * 10**5: "not readable as JSON", "json{": "not readable as JSON",
            "json" + '{"a":' * 10**5: "not readable as JSON"}


@pytest.mark.parametrize("text", PALETTES, ids=lambda text: text[:20])
def test_a_palette_that_is_unclear_is_refused(predict, text):
    path = Path("p.json" if text.startswith("json") else "p.txt")
    path.write_text(text.removeprefix("json"))
    fate = predict("--palette", path)
    assert_refused(fate, f"--palette {path}: ", PALETTES[text])
    assert len(fate.line) < 400


@pytest.mark.parametrize("content", [b"\xff\xfew\x00", bytes(range(128, 256))])
def test_a_palette_that_is_no_text_is_refused(predict, content):
    Path("p.txt").write_bytes(content)
    assert_refused(predict("--palette", "p.txt"), "--palette p.txt: is not text in UTF-8")


def test_classes_that_the_map_does_not_have_are_said_and_the_others_coloured(predict):
    Path("p.txt").write_text("mars #112233\ntown 1 2 3\n9 4 5 6\n")
    assert_worked(predict("--palette", "p.txt"), "the map has no class mars, 9")
    assert right() and colours()[3] == (1, 2, 3) and len(set(colours())) == 4


# ---------------------------------------------------------------- several networks, and what they answer


@pytest.mark.parametrize("other, words", [({"names": ["a", "b", "c", "d"]}, "differ in classes"), ({"outputs": 3, "names": NAMES[:3]}, "differ in classes"), ({"bands": 2}, "differ in bands"),
                                          ({"band_names": ["nir"]}, "differ in bands"), ({"outputs": 1, "mode": "binary", "names": NAMES[:2]}, "differ in classes")])
def test_networks_of_different_classes_or_bands_are_not_averaged(predict, other, words):
    settings = {"bands": 1, "outputs": 4, "names": NAMES} | other
    save("o.pth", Point(settings["bands"], settings["outputs"]), **settings)
    assert_refused(predict(model=["m.pth", "o.pth"]), "--model: m.pth and o.pth", words)


def test_the_same_network_twice_gives_the_same_map(predict):
    assert_worked(predict(model=["m.pth", "m.pth"]), "the mean of 2 networks")
    assert right()


@pytest.mark.parametrize("name, words", [("empty", "is not a file"), ("two", "could be a_final.pth, b_final.pth"), ("folds", "its folds hold"), ("nowhere.pth", "no such checkpoint"), ("s.tif", "is no checkpoint")])
def test_a_model_that_is_none_is_refused_also_as_the_second(predict, name, words):
    for path in ("empty/x", "two/a_final.pth", "two/b_final.pth", "folds/fold1/a_final.pth", "folds/fold2/b_final.pth"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(Path("m.pth").read_bytes())
    for models in (name, ["m.pth", name]):
        assert_refused(predict(model=models), name, words)


def refuses(x):
    raise AssertionError("Input height (16) doesn't match model (224).")


ANSWERS = {  # what a network does -> what is said
    "NaN": (lambda x: torch.cat([x, x, x, x], 1) * float("nan"), "gives values that are not finite"), "infinity": (lambda x: torch.cat([x, x, x, x], 1) + float("inf"), "not finite"),
    "one class": (lambda x: x, "answers (1, 1, 32, 32)"), "five classes": (lambda x: torch.cat([x] * 5, 1), "answers (1, 5, 32, 32)"),
    "half the size": (lambda x: torch.cat([x] * 4, 1)[..., ::2, ::2], "answers (1, 4, 16, 16)"), "one dimension less": (lambda x: x[:, 0], "answers (1, 32, 32)"),
    "other sizes alone": (refuses, "cannot take tiles of 32 x 32 pixels (Input height (16) doesn't match model (224).); give the --patch_size it was trained with"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_network_that_gives_no_answer_to_the_tile_makes_no_map(predict, monkeypatch, answer):
    function, words = ANSWERS[answer]
    monkeypatch.setattr(Point, "forward", lambda self, x: function(x))
    assert_refused(predict(), "m.pth: ", words, left=r"\.part$")  # what the run could go on from
