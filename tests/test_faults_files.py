"""Files that are not what they should be, names of every kind, and places where something else is already: each script works and is right, or says why not in one line."""

import os
import shutil

import pytest
import tinypatches
from conftest import coded, write_raster
from cutouts import assert_exact, scene_and_label, square, write_vector
from faults import assert_refused, assert_worked, spoil
from tinynet import Point, opened, save

pytest_plugins = ("faultruns",)
pytestmark = pytest.mark.usefixtures("without_fsync", "patience")


# ---------------------------------------------------------------- files that are not what they should be

RASTERS = {"missing": "no such file", "empty": "is empty (0 bytes)", "truncated": "", "a piece": "cannot be opened", "text": "is no TIFF", "folder": "",
           "loop": "no such file", "dangling": "no such file", "pipe": "is not a file", "zeros without end": "is not a file", "nothing for ever": "is not a file"}
VECTORS = {"missing": "no such file", "empty": "cannot be read as a vector file", "a piece": "cannot be read", "text": "cannot be read", "loop": "no such file", "pipe": "is not a file",
           "zeros without end": "is not a file"}
CHECKPOINTS = {"missing": "no such checkpoint", "empty": "is no checkpoint", "truncated": "is no checkpoint", "text": "is no checkpoint", "folder": "is not a file", "loop": "no such checkpoint",
               "pipe": "is not a file", "zeros without end": "is not a file"}
PALETTES = {"missing": "No such file", "empty": "gives no colours", "folder": "is not a file", "loop": "Too many levels", "pipe": "is not a file", "zeros without end": "is not a file"}


@pytest.mark.parametrize("kind, says", RASTERS.items())
@pytest.mark.parametrize("flag", ["image", "label"])
def test_extraction_names_a_raster_that_is_none(cut, tmp_path, flag, kind, says):
    bad = spoil(kind, tmp_path / f"in/{'scene' if flag == 'image' else 'label'}.tif", tmp_path / "bad.tif")
    assert_refused(cut(**{flag: bad}), "bad.tif: ", says)


@pytest.mark.parametrize("kind, says", VECTORS.items())
def test_extraction_names_a_grid_that_is_none(cut, tmp_path, kind, says):
    assert_refused(cut(grid=spoil(kind, tmp_path / "in/grid.gpkg", tmp_path / "bad.gpkg")), "bad.gpkg: ", says)


@pytest.mark.parametrize("kind, says", RASTERS.items())
def test_prediction_names_a_scene_that_is_none(predict, tmp_path, kind, says):
    says = {"folder": "holds no raster", "truncated": "bad.tif: rows 0 to 31 cannot be read"}.get(kind, says)
    assert_refused(predict(input=spoil(kind, tmp_path / "scene.tif", tmp_path / "bad.tif")), "bad.tif: ", says, left=r"/\.map\.tif\.\w+\.part$")


@pytest.mark.parametrize("flag, kind, says", [("model", *one) for one in CHECKPOINTS.items()] + [("palette", *one) for one in PALETTES.items()] + [("aoi", *one) for one in VECTORS.items()])
def test_prediction_names_what_it_cannot_read(predict, tmp_path, flag, kind, says):
    good = {"model": tmp_path / "net.pth", "palette": tmp_path / "colours.txt", "aoi": tmp_path / "area.gpkg"}[flag]
    if flag == "palette":
        good.write_text("class_0 #ff0000\n")
    elif flag == "aoi":
        write_vector(good, [square(0, 0, 32, 48)])
    assert_refused(predict(**{flag: spoil(kind, good, tmp_path / f"bad{good.suffix}")}), "bad", says)


@pytest.mark.parametrize("kind, says", CHECKPOINTS.items())
@pytest.mark.parametrize("flag", ["init_weights", "evaluate"])
def test_training_and_evaluation_name_a_checkpoint_that_is_none(train, fate, tmp_path, flag, kind, says):
    bad = spoil(kind, save(tmp_path / "good.pth", Point(3, 3), outputs=3), tmp_path / "bad.pth")
    if flag == "init_weights":
        assert_refused(train(init_weights=bad), "bad.pth: ")
    else:
        assert_refused(fate("main_v2", "--evaluate", bad, "--dataset_root", tmp_path / "patches"), "bad.pth: ", says)


@pytest.mark.parametrize("kind, says", [*RASTERS.items()])
@pytest.mark.parametrize("which", ["images", "labels"])
def test_training_names_a_patch_that_is_none(train, tmp_path, which, kind, says):
    place = tmp_path / "patches/train" / which / "p0.tif"
    (tmp_path / "p0.tif").write_bytes(place.read_bytes())
    place.unlink()
    spoil(kind, tmp_path / "p0.tif", place)
    other = f"{'labels' if which == 'images' else 'images'}/p0.tif"
    assert_refused(train(), *(["p0.tif: ", says] if kind != "missing" else [other, " without "]))


@pytest.mark.parametrize("kind", [kind for kind in RASTERS if kind != "truncated"])
def test_a_batch_names_the_scene_that_is_none_and_cuts_the_other(fate, tmp_path, kind):
    for number in (1, 2):
        for path, name in zip(scene_and_label(tmp_path / f"in{number}")[:2], ("image", "label")):
            (tmp_path / "data").mkdir(exist_ok=True)
            path.rename(tmp_path / f"data/{name}_{number}.tif")
    good = tmp_path / "data/image_1.tif"
    good.rename(tmp_path / "good.tif")
    spoil(kind, tmp_path / "good.tif", good)
    found = fate("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16)
    assert_refused(found, "1 inputs could not be used", "the others are written", status=1, left="/out/")
    assert len(list((tmp_path / "out").glob("*/images/img2_patch_*.tif"))) == 6 and not list((tmp_path / "out").glob("*/*/img1*"))


@pytest.mark.parametrize("kind", [kind for kind in RASTERS if kind not in ("missing", "loop", "dangling", "pipe", "zeros without end", "nothing for ever", "folder")])
def test_many_scenes_name_the_one_that_is_none_and_map_the_other(predict, right, tmp_path, kind):
    (tmp_path / "scenes").mkdir()
    spoil(kind, tmp_path / "scene.tif", tmp_path / "scenes/bad.tif")
    os.link(tmp_path / "scene.tif", tmp_path / "scenes/good.tif")
    assert_refused(predict(input=tmp_path / "scenes", output=tmp_path / "maps"), "1 of 2 scenes failed: ", "bad.tif", status=1, left="/maps/")
    assert (RASTERS[kind] or "cannot be read") in (tmp_path / "maps/index.csv").read_text()
    assert (opened(tmp_path / "maps/good.tif") == right).all() and not (tmp_path / "maps/bad.tif").exists()


@pytest.mark.parametrize("content, says", [
    (b"scene.tif\nloop.txt\n", "leads to itself"), ("sc\u00e8ne.tif".encode("latin-1"), "is not text in UTF-8"), (b"\n# nothing\n", "names no scene"), (b"\x00\x01\n", "no such file"),
], ids=["itself", "latin-1", "empty", "binary"])
def test_a_list_of_scenes_that_is_none_is_named(predict, tmp_path, content, says):
    (tmp_path / "loop.txt").write_bytes(content)
    assert_refused(predict(input=tmp_path / "loop.txt", output=tmp_path / "maps"), says, status=1 if says == "no such file" else 2, left="maps/index.csv") if says != "no such file" else None


@pytest.mark.parametrize("flag", ["image", "label", "grid", "output"])
def test_an_empty_word_is_not_taken_for_the_working_folder(cut, tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    assert_refused(cut(**{flag: ""}), f"--{flag}: ", "empty")


# ---------------------------------------------------------------- folders where files are wanted, and files where folders


@pytest.mark.parametrize("kind", ["text", "loop", "dangling", "pipe", "nothing for ever"])
@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_output_folder_that_cannot_be_made_is_named_at_once(cut, predict, train, tmp_path, monkeypatch, kind, below):
    way = spoil(kind, tmp_path / "scene.tif", tmp_path / "way") / below
    assert_refused(cut(output=way), "way")
    assert_refused(train(save_dir=way), "way")
    assert_refused(predict(output=way / "map.tif"), "way")
    assert_refused(predict(input=tmp_path, output=way), "way", status=2)


def test_folders_that_lie_where_files_are_to_be_written_stay(predict, train, tmp_path):
    (tmp_path / "map.json").mkdir()
    assert_refused(predict(), "map.json")
    assert_refused(predict("--overwrite"), "map.json: ", left=r"/\.map\.tif|/map\.")
    (tmp_path / "run/unet-dropout_best_iou.pth").mkdir(parents=True)
    assert_refused(train(), "unet-dropout_best_iou.pth", "--overwrite")


# ---------------------------------------------------------------- links, and one file by several names


def test_links_to_inputs_are_read_like_the_files(cut, predict, right, tmp_path):
    for name in ("scene.tif", "label.tif", "grid.gpkg"):
        (tmp_path / f"to_{name}").symlink_to(tmp_path / "in" / name)
    assert_worked(cut(image=tmp_path / "to_scene.tif", label=tmp_path / "to_label.tif", grid=tmp_path / "to_grid.gpkg"))
    assert_exact(tmp_path / "out", cut.pixels, cut.classes)
    (tmp_path / "way").symlink_to(tmp_path)
    assert_worked(predict(input=tmp_path / "way/scene.tif", model=tmp_path / "way/net.pth", output=tmp_path / "way/linked.tif"))
    assert (opened(tmp_path / "linked.tif") == right).all()


def test_training_follows_links_to_patches_and_folders(train, tmp_path):
    (tmp_path / "way").symlink_to(tmp_path)
    for path in (tmp_path / "patches/train/images").iterdir():
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    assert_worked(train(dataset_root=tmp_path / "way/patches", save_dir=tmp_path / "way/run"))
    assert tinypatches.saved(tmp_path / "run", "final.pth")["config"]["in_channels"] == 3


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize("how", ["link", "hard link", "dots", "relative", "folder link", "the network", "the area", "the palette", "the list"])
def test_an_output_that_is_an_input_by_another_name_is_refused(predict, tmp_path, monkeypatch, how, overwrite):
    monkeypatch.chdir(tmp_path)
    output, flags = tmp_path / "other.tif", {}
    if how == "link":
        output.symlink_to(tmp_path / "scene.tif")
    elif how == "hard link":
        os.link(tmp_path / "scene.tif", output)
    elif how == "dots":
        (tmp_path / "x").mkdir()
        output = tmp_path / "x/../scene.tif"
    elif how == "relative":
        output = "scene.tif"
    elif how == "folder link":
        (tmp_path / "y").symlink_to(".")
        output = "y/scene.tif"
    elif how == "the network":
        flags["model"] = shutil.copy(tmp_path / "net.pth", tmp_path / "map.qml")
        output = "map.tif"
    elif how == "the area":
        flags["aoi"], flags["polygons"] = write_vector(tmp_path / "map.geojson", [square(0, 0, 32, 48)], to="EPSG:4326"), ".geojson"
        output = "map.tif"
    elif how == "the palette":
        flags["palette"], output = tmp_path / "map.json", "map.tif"
        flags["palette"].write_text('{"class_0": "#ff0000"}')
    else:
        output = "map.tif"
        (tmp_path / "list.txt").write_text("scene.tif\n")
        flags["input"], output = "list.txt", tmp_path
    assert_refused(predict(*overwrite, output=output, **flags), left=r"/index\.csv$")


@pytest.mark.parametrize("how", ["link", "hard link"])
def test_the_map_of_one_scene_never_takes_the_place_of_another(predict, tmp_path, how):
    (tmp_path / "maps").mkdir()
    write_raster(tmp_path / "maps/a.tif", coded(32, 48))
    (os.symlink if how == "link" else os.link)(tmp_path / "maps/a.tif", tmp_path / "b.tif")
    write_raster(tmp_path / "a.tif", coded(32, 48))
    assert_refused(predict("--overwrite", input=[tmp_path / "a.tif", tmp_path / "b.tif"], output=tmp_path / "maps"), "--output", "b.tif lies there")


def test_a_scene_named_by_a_flag_of_its_own_is_mapped_too(predict, right, tmp_path):
    os.link(tmp_path / "scene.tif", tmp_path / "second.tif")
    assert_worked(predict("--input", tmp_path / "second.tif", output=tmp_path / "maps"), "2 mapped")
    assert all((opened(tmp_path / "maps" / name) == right).all() for name in ("scene.tif", "second.tif"))


def test_a_link_to_an_earlier_map_is_replaced_and_what_it_leads_to_stays(predict, right, tmp_path):
    write_raster(tmp_path / "earlier.tif", coded(4, 4))
    (tmp_path / "map.tif").symlink_to("earlier.tif")
    assert_refused(predict(), "map.tif there already", "--overwrite")
    assert_worked(predict("--overwrite", may_change="/map.tif$"))
    assert (opened(tmp_path / "map.tif") == right).all() and opened(tmp_path / "earlier.tif").shape == (4, 4) and not (tmp_path / "map.tif").is_symlink()


@pytest.mark.parametrize("kind", ["dangling", "loop"])
def test_a_link_to_nowhere_is_an_output_that_is_there(predict, fate, tmp_path, kind):
    spoil(kind, None, tmp_path / "map.tif")
    assert_refused(predict(), "map.tif")
    spoil(kind, None, tmp_path / "cells.gpkg")
    assert_refused(fate("Patch_extraction_v2", "grid", "--image", tmp_path / "scene.tif", "--output", tmp_path / "cells.gpkg", "--patch_size", 16), "cells.gpkg")


@pytest.mark.parametrize("flag, place", [("image", "train/scene.tif"), ("label", "validation/labels/label.tif"), ("grid", "patches.gpkg"), ("aoi", "test/area.gpkg"), ("image", ".unfinished/scene.tif")])
@pytest.mark.parametrize("linked", [False, True])
def test_an_input_among_what_is_overwritten_is_refused(cut, tmp_path, flag, place, linked):
    new = tmp_path / "out" / place
    new.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "in" / {"image": "scene.tif", "label": "label.tif"}.get(flag, "grid.gpkg"), new)
    if linked:
        (tmp_path / "far").symlink_to(new)
    assert_refused(cut("--overwrite", **{flag: tmp_path / "far" if linked and flag not in ("grid", "aoi") else new}), "is read, and would be replaced", "choose another folder")


@pytest.mark.parametrize("flag", ["init_weights", "encoder_weights"])
def test_weights_among_what_is_overwritten_are_refused(train, tmp_path, flag):
    (tmp_path / "run").mkdir()
    weights = save(tmp_path / "run/unet-dropout_final.pth", Point(3, 3), outputs=3)
    os.link(weights, tmp_path / "weights.pth")
    assert_refused(train("--overwrite", **{flag: tmp_path / "weights.pth"}), f"--{flag} ", "--overwrite removes")


def test_overwriting_a_run_leaves_alone_what_only_sounds_like_it(train, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("unet-dropout_summary.docx", "unet-dropout_final.tif", "unet-dropout_best_iou.pth.bak", "unet-dropout_summary.old.txt"):
        (tmp_path / "run" / name).write_text("mine")
    assert_worked(train("--overwrite"))
