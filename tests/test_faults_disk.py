"""Names of every kind, leftovers of other runs, full disks and two runs at once: nothing wrong under a final name, nothing lost."""

import contextlib
import csv
import os
import resource
import shutil
import time

import geopandas
import pytest
import tinypatches
from conftest import coded, write_raster
from cutouts import assert_exact, square, write_vector
from faults import assert_refused, assert_worked
from tinynet import opened

from eoseg import files, scenes

pytest_plugins = ("faultruns",)
pytestmark = pytest.mark.usefixtures("without_fsync", "patience")

NAMES = ["süß 北京 ñ", "two  words", "new\nline", "tab\tand 'quotes' \"too\"", "100% & <more> {0} %s $HOME `x`", "#hash?query=1", "back\\slash", "semi;colon,comma", "[a-z]*", "-dash", ".hidden",
         "e\u0301 composed", "n" * 180, "北" * 60]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", NAMES)
def test_extraction_takes_any_name(cut, tmp_path, name):
    here = tmp_path / name
    here.mkdir()
    for old, new in (("scene", "i"), ("label", "l")):
        shutil.copy(tmp_path / f"in/{old}.tif", here / f"{name}{new}.tif")
    found = cut(image=here / f"{name}i.tif", label=here / f"{name}l.tif", output=here / f"{name} out")
    if "\n" in name or "\t" in name:
        assert_refused(found, "a tab or a line break in its name")
        assert_worked(cut(image=here / f"{name}i.tif", label=here / f"{name}l.tif", output=tmp_path / "out"))
        assert_exact(tmp_path / "out", cut.pixels, cut.classes)
        return
    assert_exact(here / f"{name} out", cut.pixels, cut.classes)
    assert {path.name for path in here.iterdir()} == {f"{name}i.tif", f"{name}l.tif", f"{name} out"}


@pytest.mark.parametrize("name", NAMES)
def test_polygons_of_any_name_are_read_and_written_or_named(cut, predict, tmp_path, name):
    shutil.copy(tmp_path / "in/grid.gpkg", tmp_path / f"{name}.gpkg")
    found = cut(grid=tmp_path / f"{name}.gpkg")
    if found.status:  # GDAL's vector drivers take no line breaks
        assert_refused(found, "cannot be read as a vector file")
    else:
        assert_exact(tmp_path / "out", cut.pixels, cut.classes)
    found = predict(polygons=tmp_path / f"{name} areas.gpkg")
    if found.status:
        assert_refused(found, "which no vector format takes")
    else:
        assert geopandas.read_file(tmp_path / f"{name} areas.gpkg")["pixels"].sum() == 32 * 48


@pytest.mark.parametrize("name", [*NAMES, "n" * 236])
def test_prediction_takes_any_name(predict, right, tmp_path, name):
    here = tmp_path / name
    here.mkdir()
    scene, network = shutil.copy(tmp_path / "scene.tif", here / f"{name}.tif"), shutil.copy(tmp_path / "net.pth", here / f"{name}.pth")
    short = name if len(name.encode()) < 200 else "n"
    assert_worked(predict("--save_confidence", "--quicklook", input=scene, model=network, output=here / f"{short} map.tif"))
    assert (opened(here / f"{short} map.tif") == right).all() and opened(here / f"{short} map_confidence.tif").shape == right.shape
    endings = (".tif", ".tif.aux.xml", ".json", ".qml", "_confidence.tif", "_confidence.qml", "_quicklook.png")
    assert {path.name for path in here.iterdir()} == {f"{name}.tif", f"{name}.pth", *(f"{short} map{ending}" for ending in endings)}


@pytest.mark.parametrize("name", ["n" * 247, "北" * 82])
def test_a_map_of_the_longest_name_there_is_works_or_is_refused_at_once(predict, right, tmp_path, name):
    found = predict(output=tmp_path / f"{name}.tif")
    if found.status:
        assert_refused(found, "File name too long")
    else:
        assert (opened(tmp_path / f"{name}.tif") == right).all()


@pytest.mark.parametrize("name", NAMES)
def test_many_scenes_take_any_name(predict, right, tmp_path, name):
    (tmp_path / name).mkdir()
    for ending in ("a", "b"):
        os.link(tmp_path / "scene.tif", tmp_path / name / f"{name.lstrip('.')}{ending}.tif")
    assert_worked(predict(input=tmp_path / name, output=tmp_path / f"{name} maps"), "2 mapped")
    assert all((opened(tmp_path / f"{name} maps" / f"{name.lstrip('.')}{ending}.tif") == right).all() for ending in ("a", "b"))
    with open(tmp_path / f"{name} maps/index.csv", newline="", encoding="utf-8") as f:
        assert [row["scene"] for row in csv.DictReader(f)] == [str(tmp_path / name / f"{name.lstrip('.')}{ending}.tif") for ending in ("a", "b")]


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(".")])
def test_training_takes_any_name(train, tmp_path, name):
    here = tmp_path / f"{name} p"
    (tmp_path / "patches").rename(here)
    for path in sorted(here.glob("*/*/p0.tif")):
        path.rename(path.with_name(f"{name}.tif"))
    assert_worked(train(dataset_root=here, save_dir=tmp_path / f"{name} run", cache="auto"))
    assert tinypatches.saved(tmp_path / f"{name} run", "final.pth")["config"]["save_dir"] == str(tmp_path / f"{name} run")
    with open(tmp_path / f"{name} run/unet-dropout_test_patches.csv", newline="", encoding="utf-8") as f:
        assert [row["patch"] for row in csv.DictReader(f)] == [f"{name}.tif"]


@pytest.mark.parametrize("flag", ["image", "label", "grid", "output"])
def test_a_name_of_another_encoding_is_named_and_nothing_left(cut, tmp_path, flag):
    odd = tmp_path / os.fsdecode("sc\u00e8ne".encode("latin-1") + (b".gpkg" if flag == "grid" else b".tif"))
    if flag != "output":
        shutil.copy(tmp_path / "in" / {"image": "scene.tif", "label": "label.tif", "grid": "grid.gpkg"}[flag], odd)
    assert_refused(cut(**{flag: odd}), "cannot be read as a vector file" if flag == "grid" else "not UTF-8; rename")


@pytest.mark.parametrize("flag", ["input", "output"])
def test_prediction_names_a_name_of_another_encoding(predict, tmp_path, flag):
    odd = tmp_path / os.fsdecode("sc\u00e8ne.tif".encode("latin-1"))
    if flag == "input":
        shutil.copy(tmp_path / "scene.tif", odd)
    assert_refused(predict(**{flag: odd}), "not UTF-8; rename")


def test_a_scene_whose_name_is_of_another_encoding_fails_alone(predict, right, tmp_path):
    (tmp_path / "scenes").mkdir()
    for name in (b"sc\xe8ne.tif", b"good.tif"):
        os.link(tmp_path / "scene.tif", tmp_path / "scenes" / os.fsdecode(name))
    assert_refused(predict(input=tmp_path / "scenes", output=tmp_path / "maps"), "1 of 2 scenes failed", status=1, left="/maps/")
    assert (opened(tmp_path / "maps/good.tif") == right).all() and len(list((tmp_path / "maps").glob("*.tif"))) == 1


def test_scenes_that_differ_in_the_case_of_their_names_alone_are_refused(predict, tmp_path):
    (tmp_path / "scenes").mkdir()
    for name in ("a.tif", "a.TIF"):
        shutil.copy(tmp_path / "scene.tif", tmp_path / "scenes" / name)
    assert_refused(predict(input=tmp_path / "scenes", output=tmp_path / "maps"), "a.tif", "a.TIF", "would both be mapped")


def test_what_lies_beside_one_map_is_never_the_map_of_another_scene(predict, tmp_path):
    (tmp_path / "scenes").mkdir()
    for name in ("a.tif", "a_confidence.tif"):
        shutil.copy(tmp_path / "scene.tif", tmp_path / "scenes" / name)
    assert_refused(predict("--save_confidence", input=tmp_path / "scenes", output=tmp_path / "maps"), "--save_confidence", "a_confidence.tif")
    assert_worked(predict(input=tmp_path / "scenes", output=tmp_path / "maps"), "2 mapped")


def test_patches_that_differ_in_the_case_of_their_suffix_are_two(train, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / f"patches/train/{kind}/p0.tif").rename(tmp_path / f"patches/train/{kind}/p1.TIF")
    assert_worked(train(), "train 4,")


def test_a_label_whose_suffix_is_spelled_otherwise_is_no_partner(train, tmp_path):
    (tmp_path / "patches/train/labels/p0.tif").rename(tmp_path / "patches/train/labels/p0.TIF")
    assert_refused(train(), "p0", "without")


def test_an_id_too_long_for_a_file_name_is_told_before_anything_is_cut(cut, tmp_path):
    grid = write_vector(tmp_path / "long.gpkg", [square(0, 0), square(0, 16)], name=["x" * 260, "y"])
    assert_refused(cut(grid=grid, id_column="name"), "--id_column name", "cannot be part of a file name")


# ---------------------------------------------------------------- what other runs left


def leave(path, kind, target):
    """A leftover under a temporary name: a killed run's file, or something worse."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        path.write_bytes(b"half" * 999)
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "hard link":
        os.link(target, path)
    else:
        path.mkdir()


PARTS = [".map.tif.part", ".map.tif.part.vrt", ".map.tif.part.aux.xml", ".map.tif.classes.part", ".map.tif.journal.part", ".map.json.part", ".map.qml.part", ".map.gpkg.part", ".map.tif.lock"]


@pytest.mark.parametrize("kind", ["file", "link", "hard link", "folder"])
@pytest.mark.parametrize("part", PARTS)
def test_prediction_never_writes_through_what_lies_under_its_temporary_names(predict, right, tmp_path, part, kind):
    victim = write_raster(tmp_path / "victim.tif", coded(32, 48))
    before = victim.read_bytes()
    leave(tmp_path / part, kind, victim)
    found = predict("--overwrite", polygons=".gpkg", may_change=rf"/{part}$")
    assert victim.read_bytes() == before
    if kind == "folder" or part.endswith("lock") and found.status:
        assert_refused(found, part.removesuffix(".gpkg"), left=r"/\.map\.|/map\.(json|qml|tif)")
    else:
        assert_worked(found)
        assert (opened(tmp_path / "map.tif") == right).all() and not list(tmp_path.glob(".map*"))


@pytest.mark.parametrize("kind", ["file", "link", "hard link"])
@pytest.mark.parametrize("ending", ["final.pth", "last.pth", "metrics.json", "training_log.csv"])
def test_training_sweeps_what_lies_under_its_temporary_names(train, tmp_path, ending, kind):
    before = (tmp_path / "patches/train/images/p0.tif").read_bytes()
    leave(tmp_path / f"run/.unet-dropout_{ending}.part", kind, tmp_path / "patches/train/images/p0.tif")
    assert_worked(train(may_change=r"\.part$"))
    assert (tmp_path / "patches/train/images/p0.tif").read_bytes() == before and not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("kind", ["file", "link", "folder", "link to a folder"])
def test_extraction_sweeps_what_lies_in_the_way_of_its_staging_folder(cut, tmp_path, kind):
    target = tmp_path / "in" if kind == "link to a folder" else tmp_path / "in/scene.tif"
    (tmp_path / "in/settings.json").write_text("{}")
    leave(tmp_path / "out/.unfinished", "link" if kind.startswith("link") else kind, target)
    found = cut(may_change=r"/\.unfinished$")
    if found.status:
        assert_refused(found, ".unfinished")
    else:
        assert_exact(tmp_path / "out", cut.pixels, cut.classes)
        assert not (tmp_path / "out/.unfinished").exists()


# ---------------------------------------------------------------- full disks


@contextlib.contextmanager
def room(most):
    """No file may grow beyond `most` bytes: what a full disk does to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FINAL = r"/\.[^/]+$|/\.unfinished/"  # hidden: nothing under a final name


@pytest.mark.parametrize("most", [300, 700, 1500, 5000, 40000, 90000])
def test_extraction_on_a_full_disk_leaves_nothing_or_all(cut, tmp_path, most):
    with room(most):
        found = cut()
    if found.status:
        assert_refused(found, "full", left=FINAL)
        assert not list((tmp_path / "out").glob("[!.]*"))
        assert_worked(cut(may_change=FINAL))
    assert_exact(tmp_path / "out", cut.pixels, cut.classes)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("most", [300, 600, 1000, 1400, 2000, 4000, 50000, 90000])
def test_prediction_on_a_full_disk_leaves_no_map_and_the_next_run_goes_on(predict, right, tmp_path, most):
    with room(most):
        found = predict("--save_confidence", polygons=".gpkg")
    if found.status:
        assert_refused(found, "full", left=FINAL + r"|/map.*\.(json|qml)$|/map.*tif")
        assert not (tmp_path / "map.gpkg").exists()
    assert_worked(predict("--save_confidence", "--resume", polygons=".gpkg", may_change="/[.]?map"))
    assert (opened(tmp_path / "map.tif") == right).all() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("most", [300, 1000, 10000, 300000, 500000])
def test_training_on_a_full_disk_leaves_no_broken_file_and_the_next_run_is_right(train, tmp_path, most):
    with room(most):
        found = train()
    assert_refused(found, "full", left="/run/")
    for path in (tmp_path / "run").glob("[!.]*.pth"):
        assert tinypatches.saved(tmp_path / "run", path.name.removeprefix("unet-dropout_"))
    assert_worked(train("--resume", may_change="/run/"))
    assert tinypatches.saved(tmp_path / "run", "final.pth") and not list((tmp_path / "run").glob(".*"))


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/full", "/sys/nowhere/deep"])
def test_folders_that_take_no_files_are_named(cut, predict, train, folder):
    assert_refused(cut(output=folder), folder.split("/")[1])
    assert_refused(train(save_dir=folder), folder.split("/")[1])
    assert_refused(predict(output=f"{folder}/map.tif"), folder.split("/")[1])


# ---------------------------------------------------------------- two runs at once, odd masks, many files


def test_a_second_run_over_many_scenes_into_one_folder_is_refused(predict, right, tmp_path):
    with files.lock(tmp_path / "maps", ".index.csv.lock"):
        assert_refused(predict(input=[tmp_path / "scene.tif"] * 2, output=tmp_path / "maps"), "another run is writing here")
    os.link(tmp_path / "scene.tif", tmp_path / "second.tif")
    assert_worked(predict(input=[tmp_path / "scene.tif", tmp_path / "second.tif"], output=tmp_path / "maps"), "2 mapped")
    assert (opened(tmp_path / "maps/second.tif") == right).all() and not list((tmp_path / "maps").glob(".*"))


def test_a_refused_run_leaves_none_of_the_folders_it_made(predict, tmp_path):
    (tmp_path / "scene.tif").write_bytes((tmp_path / "scene.tif").read_bytes()[:300])
    assert_refused(predict(output=tmp_path / "new/deep/er/map.tif"), "scene.tif")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("mask", [0o077, 0o000])
def test_the_users_mask_decides_who_may_read_what_is_written(cut, predict, right, train, tmp_path, mask):
    before = os.umask(mask)
    try:
        assert_worked(cut())
        assert_worked(predict())
    finally:
        os.umask(before)
    for path in (tmp_path / "out/patches.csv", tmp_path / "map.tif", *(tmp_path / "out").glob("*/images/*.tif")):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert (opened(tmp_path / "map.tif") == right).all()
    assert_exact(tmp_path / "out", cut.pixels, cut.classes)


def test_twenty_thousand_scenes_are_listed_and_noted_in_seconds(tmp_path):
    for number in range(20000):
        os.mknod(tmp_path / f"s{number}.tif")
    begun = time.process_time()
    found, many = scenes.scenes_of([str(tmp_path)])
    maps = scenes.maps_of(found, tmp_path / "maps")
    index = scenes.Index(tmp_path / "maps", maps)
    for scene in found:
        index.put(scene, "mapped", 0.1, {"land": 0.5})
    index.close()
    assert many and time.process_time() - begun < 10
    with open(tmp_path / "maps/index.csv", newline="", encoding="utf-8") as f:
        assert sum(row["status"] == "mapped" for row in csv.DictReader(f)) == 20000
