"""Many scenes in one run: what is mapped stays, what fails is named, the rest goes on."""

import csv
import threading

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from conftest import coded, write_raster
from tinynet import Point, Spy, by_hand, opened, remainder, save

from eoseg import mapping
from eoseg.config import PredictionConfig
from eoseg.errors import SetupError
from eoseg.scenes import maps_of

OPTIONS = {"patch_size": 64, "overlap": 16}


def scenes(folder, count=4):
    """Scenes that differ, as paths by name; the second is damaged."""
    (folder / "in").mkdir()
    found = [str(write_raster(folder / f"in/s{i}.tif", coded(90, 70, 1) + i)) for i in range(count)]
    with open(found[1], "r+b") as f:
        f.truncate(3000)
    return found


def run(folder, net, names, **options):
    said = []
    index = mapping.map_all(by_hand(folder, net, classes=7), maps_of(names, folder / "out"), folder / "out", PredictionConfig(**OPTIONS | options), said.append)
    return index, said


def rows_of(folder):
    with open(folder / "out/index.csv", newline="") as f:
        return list(csv.DictReader(f))


def test_a_damaged_scene_is_named_and_the_others_are_mapped(tmp_path):
    names = scenes(tmp_path)
    index, said = run(tmp_path, Spy(remainder(7)), names)
    assert [row["status"] for row in rows_of(tmp_path)] == ["mapped", "failed", "mapped", "mapped"]
    assert "s1.tif" in index.failures() and "s1.tif" in rows_of(tmp_path)[1]["error"] and not (tmp_path / "out/s1.tif").exists()
    for i in (0, 2, 3):
        assert (opened(tmp_path / f"out/s{i}.tif") == (coded(90, 70, 1)[0] + i) % 7).all()
        shares = [float(rows_of(tmp_path)[i][f"share_class_{k}"]) for k in range(7)]
        assert shares == pytest.approx(np.bincount((coded(90, 70, 1)[0].ravel() + i) % 7, minlength=7) / 6300, abs=1e-6)
    assert not [path for path in (tmp_path / "out").iterdir() if "lock" in path.name]


def test_a_second_run_maps_only_what_is_missing(tmp_path):
    names = scenes(tmp_path)
    run(tmp_path, Spy(remainder(7)), names)
    write_raster(names[1], coded(90, 70, 1) + 1)
    (tmp_path / "out/s3.tif").unlink()
    before, net = (tmp_path / "out/s0.tif").stat().st_mtime_ns, Spy(remainder(7))
    index, _ = run(tmp_path, net, names)
    assert [row["status"] for row in rows_of(tmp_path)] == ["skipped", "mapped", "skipped", "mapped"] and not index.failures()
    assert (tmp_path / "out/s0.tif").stat().st_mtime_ns == before and sum(map(len, net.seen)) == 2 + 2 * 4  # a trial first
    assert float(rows_of(tmp_path)[0]["share_class_3"]) > 0


def test_a_map_of_other_settings_is_not_taken_for_this_one(tmp_path):
    names = scenes(tmp_path)[:1]
    run(tmp_path, Spy(remainder(7)), names)
    index, _ = run(tmp_path, Spy(remainder(7)), names, overlap=8)
    assert "was made with other overlap" in rows_of(tmp_path)[0]["error"] and index.failures()
    assert not run(tmp_path, Spy(remainder(7)), names, overlap=8, overwrite=True)[0].failures()


def test_what_is_asked_for_beside_finished_maps_is_made(tmp_path):
    names = [name for name in scenes(tmp_path) if "s1" not in name]
    run(tmp_path, Spy(remainder(7)), names)
    before = (tmp_path / "out/s0.tif").read_bytes()
    index, _ = run(tmp_path, Spy(remainder(7)), names, polygons=".gpkg")
    assert index.of("skipped") == names and (tmp_path / "out/s0.tif").read_bytes() == before
    for i in (0, 2, 3):
        frame = geopandas.read_file(tmp_path / f"out/s{i}.gpkg")
        assert frame["pixels"].sum() == 6300 and set(frame["class"]) == set(range(7))


def test_files_of_another_are_not_lost_to_a_run_over_many_scenes(tmp_path):
    names = [name for name in scenes(tmp_path) if "s1" not in name]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/s0.json").write_text('{"cloud": 3}')
    index, _ = run(tmp_path, Spy(remainder(7)), names)
    assert index.of("failed") == names[:1] and (tmp_path / "out/s0.json").read_text() == '{"cloud": 3}'
    (tmp_path / "out/index.csv").write_text("name,grade\n")
    with pytest.raises(SetupError, match="its index.csv is none of ours"):
        run(tmp_path, Spy(remainder(7)), names)


def test_options_that_fit_no_scene_end_the_run_at_once(tmp_path):
    with pytest.raises(SetupError, match="--threshold"):
        run(tmp_path, Spy(remainder(7)), scenes(tmp_path), threshold=0.3)
    assert not (tmp_path / "out").exists()


def test_an_area_beside_one_of_the_scenes_is_told_by_name(tmp_path):
    names = [name for name in scenes(tmp_path) if "s1" not in name]
    write_raster(names[0], coded(90, 70, 1), transform=rasterio.transform.from_origin(600000, 4800000, 10, 10))
    geopandas.GeoDataFrame(geometry=[shapely.box(500000, 4799500, 500400, 4800000)], crs="EPSG:32630").to_file(tmp_path / "aoi.gpkg")
    index, _ = run(tmp_path, Spy(remainder(7)), names, aoi=str(tmp_path / "aoi.gpkg"))
    assert index.of("failed") == names[:1] and f"aoi.gpkg: lies beside {names[0]}" in index.rows[names[0]]["error"]
    assert (opened(tmp_path / "out/s2.tif") != 255).sum() == 50 * 40


def test_the_next_scene_is_read_while_one_is_computed(tmp_path, monkeypatch):
    names, read, met = [name for name in scenes(tmp_path) if "s1" not in name], {}, []
    real = mapping.Job.begin

    def begin(job, **how):
        found = real(job, **how)
        read.setdefault(job.path, threading.Event()).set()
        return found

    def net(x):
        if x.max() > 1000:  # no trial
            met.append(read.setdefault(names[1], threading.Event()).wait(20))  # in the first scene already
        return remainder(7)(x)

    monkeypatch.setattr(mapping.Job, "begin", begin)
    assert not run(tmp_path, Spy(net), names)[0].failures() and all(met)


def test_an_end_amid_a_scene_leaves_no_lock_and_the_next_run_goes_on(tmp_path):
    names, calls = [name for name in scenes(tmp_path) if "s1" not in name], []

    def net(x):
        calls.append(0)
        if len(calls) == 9:  # of the second scene, after a trial
            raise KeyboardInterrupt
        return remainder(7)(x)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Spy(net), names)
    assert not [path.name for path in (tmp_path / "out").iterdir() if "lock" in path.name]
    after = Spy(remainder(7))
    assert not run(tmp_path, after, names)[0].failures()
    assert [row["status"] for row in rows_of(tmp_path)] == ["skipped", "mapped", "mapped"]
    assert (opened(tmp_path / "out/s2.tif") == (coded(90, 70, 1)[0] + 2) % 7).all() and sum(map(len, after.seen)) < 11


def test_the_script_maps_folders_and_says_how_it_went(tmp_path, script, point_models):
    scenes(tmp_path)
    for i in range(4):
        write_raster(tmp_path / f"in/s{i}.tif", coded(40, 40))
    (tmp_path / "in/s1.tif").write_bytes(b"")
    words = ("Predict_large_image_v2", "--model", save(tmp_path / "m.pth", Point(3, 4)), "--input", tmp_path / "in", "--output", tmp_path / "out")
    status, said, error = script(*words)
    assert status == 1 and "error: 1 of 4 scenes failed: " in error and "3 mapped, 1 failed" in said
    status, said, error = script(*words, "--dry_run", "--overwrite")
    assert status == 1 and "1 of 4 scenes could not be mapped: " in error and said.count("memory    about") == 3
    (tmp_path / "in/s1.tif").unlink()
    assert script(*words)[0] == 0
    assert script(*words[:-1], tmp_path / "map.tif")[2].startswith(f"error: --output {tmp_path}/map.tif: several scenes need a folder")
