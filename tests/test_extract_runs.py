"""The run as a whole: splits, what is written about the patches, and that nothing is lost when a run fails or is killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import rasterio
from conftest import ROOT, coded, write_raster
from cutouts import assert_exact, bytes_of, error_of, metadata_of, rows_of, scene_and_label, square, write_vector

from eoseg import cutting, extract, places

pytestmark = pytest.mark.usefixtures("without_fsync")


@pytest.fixture
def single(script):
    """Run `single` with patches of 16 pixels; (exit status, stdout, stderr)."""
    return lambda image, label, folder, *words: script("Patch_extraction_v2", "single", "--image", image, "--label", label, "--output", folder, "--patch_size", 16, *words)


def counts(folder):
    """Patches of each split, counted in the folders."""
    return {split: len(list((folder / split / "images").glob("*.tif"))) for split in ("train", "validation", "test")}


# ---------------------------------------------------------------- splits


@pytest.mark.parametrize("ratios, wanted", [((0.75, 0.2, 0.05), (15, 4, 1)), ((0.7, 0.15, 0.15), (14, 3, 3)), ((0.5, 0.48, 0.02), (10, 10, 0)), ((1, 0, 0), (20, 0, 0))])
def test_ratios_are_met_by_the_patches_really_written(tmp_path, single, ratios, wanted):
    image, label, pixels, codes = scene_and_label(tmp_path, 64, 96)
    codes[:16, :64] = 255  # 4 of 24 cells have no label
    write_raster(label, codes)
    status, out, _ = single(image, label, tmp_path / "out", "--train_ratio", ratios[0], "--val_ratio", ratios[1], "--test_ratio", ratios[2])
    assert status == 0 and tuple(counts(tmp_path / "out").values()) == wanted
    assert ("validation is empty" in out) == (wanted[1] == 0) and "left out 4: no labelled pixel" in out
    assert_exact(tmp_path / "out", pixels, codes)


def test_the_seed_decides_the_split_and_0_is_a_seed(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path, 64, 96)
    splits = {}
    for seed in (0, 1, 42, None):
        folder = tmp_path / f"out{seed}"
        single(image, label, folder, *([] if seed is None else ["--random_seed", seed]))
        splits[seed] = [row["split"] for row in rows_of(folder).values()]
    assert splits[None] == splits[42] and len({tuple(found) for found in splits.values()}) == 3


def test_two_runs_write_the_same_bytes_wherever_their_inputs_lie(tmp_path, single):
    found = []
    for place in ("here", "there/and deeper"):
        image, label, pixels, _ = scene_and_label(tmp_path / place, nodata=0)
        cells = write_vector(tmp_path / place / "g.gpkg", [square(r, c + 0.3) for r in (0, 16) for c in (0, 16, 32)])
        os.utime(image, (1, 1) if place == "here" else None)
        assert single(image, label, tmp_path / place / "out", "--grid", cells, "--random_seed", 0)[0] == 0
        found.append(bytes_of(tmp_path / place / "out"))
    assert found[0] == found[1]
    assert sorted(path for path in found[0] if "/" not in path) == ["patch_metadata.json", "patches.csv", "patches.gpkg"]
    words = (found[0]["patches.csv"] + found[0]["patch_metadata.json"]).decode()
    assert str(tmp_path) not in words and "here" not in words and not re.search(r"20[2-9]\d-\d\d", words) and os.uname().nodename not in words


def test_the_grids_own_column_decides_the_split(tmp_path, single):
    image, label, pixels, codes = scene_and_label(tmp_path)
    said = ["Train", "val", " validation ", "TRAINING", "test", "valid"]
    cells = write_vector(tmp_path / "g.gpkg", [square(r, c) for r in (0, 16) for c in (0, 16, 32)], part=said)
    assert single(image, label, tmp_path / "out", "--grid", cells, "--split_column", "part")[0] == 0
    assert [row["split"] for row in assert_exact(tmp_path / "out", pixels, codes).values()] == ["train", "validation", "validation", "train", "test", "validation"]


@pytest.mark.parametrize("said, text", [
    (["train", "val", "holdout", "train"], "--split_column part: holds holdout"), (["train", "val", None, "train"], "--split_column part: holds nothing"),
    (["train", "test", "test", "train"], "no usable patch is left for validation"), (["val", "test", "test", "val"], "left for train"),
])
def test_a_split_column_must_name_a_split_for_every_cell_and_leave_enough(tmp_path, single, said, text):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.geojson", [square(r, c) for r in (0, 16) for c in (0, 16)], to="EPSG:4326", part=said)
    status, _, err = single(image, label, tmp_path / "out", "--grid", cells, "--split_column", "part")
    assert re.search(text, error_of(status, err)) and not (tmp_path / "out").exists()


def test_a_split_column_counts_only_the_patches_written(tmp_path, single):
    image, label, _, codes = scene_and_label(tmp_path)
    codes[:16, :16] = 255
    write_raster(label, codes)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0), square(0, 16)], part=["val", "train"])
    assert "left for validation" in error_of(*single(image, label, tmp_path / "out", "--grid", cells, "--split_column", "part")[::2])
    for words in (["--split_column", "elsewhere", "--grid", cells], ["--split_column", "part"]):
        assert "--split_column" in error_of(*single(image, label, tmp_path / "out", *words)[::2])


# ---------------------------------------------------------------- what is written about the patches


def test_the_metadata_holds_numbers_that_numpy_finds_too(tmp_path, single):
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 3000, (2, 64, 96)).astype("uint16")
    pixels[1, rng.random((64, 96)) < 0.1] = 0
    codes = rng.choice([11, 21, 31, 99], (64, 96)).astype("uint8")
    image = write_raster(tmp_path / "scene.tif", pixels, nodata=0, names=["VV", "VH"])
    label = write_raster(tmp_path / "label.tif", codes)
    status, _, err = single(image, label, tmp_path / "out", "--label_map", "11=0", "21=2", "31=2", "99=ignore")
    assert status == 0, err
    metadata, rows = metadata_of(tmp_path / "out"), rows_of(tmp_path / "out")
    assert metadata["patches"] == counts(tmp_path / "out") == {"train": 18, "validation": 5, "test": 1}
    invalid = (pixels == 0).all(0)
    target = np.where(invalid, 255, np.select([codes == 11, codes == 99], [0, 255], 2))
    seen = {split: [] for split in metadata["patches"]}
    for row in rows.values():
        here = slice(int(row["row"]), int(row["row"]) + 16), slice(int(row["col"]), int(row["col"]) + 16)
        seen[row["split"]].append(here)
        assert [int(row["class_0"]), int(row["class_2"]), int(row["labelled_pixels"])] == [(target[here] == c).sum() for c in (0, 2)] + [(target[here] != 255).sum()]
    for split, places in seen.items():
        assert metadata["class_pixels"][split] == {str(c): int(sum((target[here] == c).sum() for here in places)) for c in (0, 2)}
    for band, name in enumerate(["VV", "VH"]):
        values = np.concatenate([pixels[band][here].ravel() for here in seen["train"]])
        values = values[values != 0]
        found = metadata["statistics"][band]
        assert found["band"] == name and (found["valid_pixels"], found["min"], found["max"]) == (len(values), values.min(), values.max())
        assert [found["mean"], found["std"]] == pytest.approx([values.mean(), values.std()], rel=1e-9)
        assert [found[key] for key in ("p1", "p50", "p99")] == pytest.approx(np.percentile(values, [1, 50, 99]), rel=1e-12)
    assert metadata["bands"] == {"names": ["VV", "VH"], "source_bands": [1, 2], "source_count": 2, "dtype": "uint16"}
    assert metadata["label_map"] == {"11": 0, "21": 2, "31": 2, "99": 255} and metadata["class_names"] is None and metadata["label_outside"] is None
    assert metadata["settings"]["patch_size"] == 16 and metadata["settings"]["random_seed"] == 42 and not metadata["failed"]


def test_class_names_and_what_lies_outside_polygons_are_kept(tmp_path, single):
    image, _, _, _ = scene_and_label(tmp_path)
    label = write_vector(tmp_path / "p.gpkg", [square(0, 0, 20), square(8, 20, 8)], kind=["water", "town"])
    assert single(image, label, tmp_path / "out", "--label_field", "kind", "--label_map", "water=0", "town=2")[0] == 0
    metadata = metadata_of(tmp_path / "out")
    assert metadata["class_names"] == ["water", "class_1", "town"] and metadata["label_outside"] == 255
    assert single(image, label, tmp_path / "mask", "--label_burn", 1)[0] == 0
    assert metadata_of(tmp_path / "mask")["label_outside"] == 0


@pytest.mark.parametrize("words, left", [([], 4), (["--keep_unlabelled"], 6), (["--min_labelled", "0.2"], 3), (["--max_nodata", "0.4"], 3), (["--max_nodata", "0.6"], 4)])
def test_patches_with_too_little_in_them_are_left_out_and_counted(tmp_path, single, words, left):
    pixels, codes = coded(32, 48), np.ones((32, 48), "uint8")
    codes[:16, :32] = 255  # two cells without a label
    codes[16:, :16] = 255
    codes[16, :12] = 1  # one with 12 labelled pixels
    pixels[:, 16:, 24:32] = 0  # one with half its pixels
    image, label = write_raster(tmp_path / "scene.tif", pixels, nodata=0), write_raster(tmp_path / "label.tif", codes)
    status, out, _ = single(image, label, tmp_path / "out", *words)
    metadata = metadata_of(tmp_path / "out")
    assert status == 0 and len(rows_of(tmp_path / "out")) == left
    assert sum(part["count"] for part in metadata["skipped"].values()) == 6 - left
    for reason, part in metadata["skipped"].items():
        assert f"left out {part['count']}: {reason}" in out and len(part["cells"]) == part["count"]


def test_nothing_to_cut_says_why_and_leaves_nothing(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    write_raster(label, np.full((32, 48), 255, "uint8"))
    assert "6 cells: no labelled pixel" in error_of(*single(image, label, tmp_path / "out")[::2])
    write_raster(label, np.full((32, 48), 7, "uint8"))
    error = error_of(*single(image, label, tmp_path / "out", "--label_map", "1=0")[::2])
    assert "label.tif: holds label values 7" in error and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words, text", [
    (["--train_ratio", "0.5"], "add up to 0.75"), (["--label_channels", "3"], "--label_channels 3"), (["--bands", "1", "--image_channels", "1"], "--bands"),
    (["--id_column", "name"], "--id_column name: the grid has no such column"), (["--patch_sise", "3"], "did you mean --patch_size"), (["--label_map", "1"], "--label_map 1"),
    (["--interpolation", "cubic"], "--interpolation"), (["--resume", "--overwrite"], "--resume and --overwrite"), (["--label_nodata", "x"], "--label_nodata x"),
])
def test_options_that_cannot_be_are_named(tmp_path, single, words, text):
    image, label, _, _ = scene_and_label(tmp_path)
    cells = write_vector(tmp_path / "g.gpkg", [square(0, 0)])
    assert text in error_of(*single(image, label, tmp_path / "out", "--grid", cells, *words)[::2]) and not (tmp_path / "out").exists()


def test_verbose_names_every_cell(tmp_path, single):
    image, label, _, codes = scene_and_label(tmp_path)
    codes[:16, :16] = 255
    write_raster(label, codes)
    out = single(image, label, tmp_path / "out", "--verbose", "--save_metadata")[1]
    for row in rows_of(tmp_path / "out").values():
        assert re.search(rf"cell {row['id']} +{row['split']} +{row['patch']} ", out)
    assert "left out 1: no labelled pixel (0)" in out


def test_info_and_visualize_tell_and_draw_what_was_cut(tmp_path, script):
    image, label, _, _ = scene_and_label(tmp_path)
    folder = tmp_path / "out"
    assert script("Patch_extraction_v2", "extract", "--image", image, "--label", label, "--output", folder, "--patch_size", 16)[0] == 0
    status, out, _ = script("Patch_extraction_v2", "info", "--output", folder)
    metadata = metadata_of(folder)
    assert status == 0 and re.search(r"train +5 +83.3%  nodata 0.0%\n +validation +1 .*\n +test +0 ", out) and (folder / "splits.png").read_bytes().startswith(b"\x89PNG")
    for band in metadata["statistics"]:
        assert f"{band['band']} " in out and f"mean {band['mean']:.6g}" in out
    assert f"{metadata['class_pixels']['train']['3']:,}" in out
    assert script("Patch_extraction_v2", "visualize", "--output", folder, "--sample_index", 4)[0] == 0
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("sample_train_4.png", "contact_train.png"))
    for words, text in ((["--sample_index", 5], "holds 5 patches; give 0 to 4"), (["--split", "test"], "holds no patches of test")):
        assert text in error_of(*script("Patch_extraction_v2", "visualize", "--output", folder, *words)[::2])
    (tmp_path / "other").mkdir()
    for command in ("info", "visualize"):
        assert "other" in error_of(*script("Patch_extraction_v2", command, "--output", tmp_path / "other")[::2])
    (tmp_path / "other" / "patch_metadata.json").write_text('{"created": "2023"}')
    assert "another program" in error_of(*script("Patch_extraction_v2", "info", "--output", tmp_path / "other")[::2])


# ---------------------------------------------------------------- existing output, failures, kills


def test_existing_patches_are_replaced_only_when_told(tmp_path, single):
    image, label, _, codes = scene_and_label(tmp_path)
    folder = tmp_path / "out"
    single(image, label, folder)
    (folder / "notes.txt").write_text("mine")
    before = bytes_of(folder)
    error = error_of(*single(image, label, folder, "--random_seed", 1)[::2])
    assert "--overwrite" in error and "--resume" in error and bytes_of(folder) == before
    assert single(image, label, folder, "--overwrite", "--label_map", "0=0", "1=1", "2=2", "3=ignore", "4=ignore", "--edge", "skip")[0] == 0
    assert_exact(folder, coded(32, 48), np.where(codes > 2, 255, codes).astype("uint8"))
    assert (folder / "notes.txt").read_text() == "mine" and not (folder / ".unfinished").exists()


def test_a_run_that_fails_leaves_the_old_patches_as_they_were(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    folder = tmp_path / "out"
    single(image, label, folder)
    before = bytes_of(folder)
    error_of(*single(image, label, folder, "--overwrite", "--label_map", "0=0")[::2])
    assert bytes_of(folder) == before


def stopping(monkeypatch, module, name, after):
    """Let the next `after` calls of a function pass and interrupt the one behind them, as Ctrl-C does."""
    real, left = getattr(module, name), [after]

    def call(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize("old", [False, True], ids=["fresh", "overwriting"])
@pytest.mark.parametrize("module, name, after", [
    (cutting, "cut", 0), (cutting, "cut", 3), (cutting, "write", 2), (places, "divide", 0), (extract, "describe", 0), (extract, "write_tables", 0), (os, "rename", 0), (os, "rename", 5),
    (extract.files, "write_csv", 0), (extract.files, "write_json", 1), (extract, "finish", 0), (os, "rename", 13), (os, "rename", 15),
], ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes(tmp_path, single, monkeypatch, module, name, after, old):
    image, label, _, _ = scene_and_label(tmp_path)
    single(image, label, tmp_path / "unbroken")
    folder = tmp_path / "out"
    words = []
    if old:
        single(image, label, folder, "--random_seed", 5, "--bands", 1)
        words = ["--overwrite"]
    before = bytes_of(folder) if old else {}
    with monkeypatch.context() as patch:
        stopping(patch, module, name, after)
        assert single(image, label, folder, *words)[0] == 130
    if after < 13:  # later ones fall into the moving of what is complete
        assert {path: content for path, content in bytes_of(folder).items() if not path.startswith(".unfinished")} == before
    stages = bytes_of(folder)
    assert "--resume: the run that was cut off was begun with other random_seed" in error_of(*single(image, label, folder, "--resume", "--random_seed", 9)[::2])
    assert bytes_of(folder) == stages
    status, _, err = single(image, label, folder, "--resume")
    assert status == 0, err
    assert bytes_of(folder) == bytes_of(tmp_path / "unbroken")


def test_resume_takes_over_what_was_cut_and_notices_changed_inputs(tmp_path, single, monkeypatch):
    image, label, _, _ = scene_and_label(tmp_path)
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopping(patch, cutting, "cut", 4)
        single(image, label, folder)
    with monkeypatch.context() as patch:
        stopping(patch, cutting, "cut", 2)  # two of six are left to cut
        assert single(image, label, folder, "--resume")[0] == 0
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        stopping(patch, cutting, "cut", 4)
        single(image, label, folder)
    write_raster(label, np.ones((32, 48), "uint8"))
    os.utime(label, (1, 1))
    assert "label.tif" in error_of(*single(image, label, folder, "--resume")[::2])


def test_resume_without_anything_to_go_on_with_starts_or_refuses(tmp_path, single):
    image, label, pixels, codes = scene_and_label(tmp_path)
    assert single(image, label, tmp_path / "out", "--resume")[0] == 0
    assert_exact(tmp_path / "out", pixels, codes)
    error_of(*single(image, label, tmp_path / "out", "--resume", "--random_seed", 1)[::2])


def test_the_readable_cells_of_a_truncated_image_are_written_and_the_others_named(tmp_path, single):
    pixels = coded(48, 48)
    image = write_raster(tmp_path / "scene.tif", pixels, blockysize=1, interleave="pixel")
    image.write_bytes(image.read_bytes()[: -48 * 3 * 2 * 20])  # the last 20 rows
    label = write_raster(tmp_path / "label.tif", np.ones((48, 48), "uint8"))
    status, out, err = single(image, label, tmp_path / "out")
    assert status == 1 and "Traceback" not in err
    assert sorted(assert_exact(tmp_path / "out", pixels)) == ["0", "1", "2"]
    failed = metadata_of(tmp_path / "out")["failed"]
    assert sorted(failed) == [f"patch_{n}.tif" for n in range(3, 9)] and all(name in err for name in failed)
    assert str(tmp_path) not in str(failed) and err.splitlines()[-1].startswith(f"error: {tmp_path / 'out'}: 6 inputs could not be used")


def test_two_runs_never_write_into_one_folder(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    with extract.files.lock(tmp_path / "out"):
        assert "another run is writing here" in error_of(*single(image, label, tmp_path / "out")[::2])
    (tmp_path / "file").write_text("x")
    assert "is a file" in error_of(*single(image, label, tmp_path / "file")[::2])


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    image = write_raster(tmp_path / "scene.tif", rng.integers(1, 5000, (4, 512, 640)).astype("uint16"))
    label = write_raster(tmp_path / "label.tif", rng.integers(0, 5, (512, 640)).astype("uint8"))

    def command(folder, *words):
        return [sys.executable, str(ROOT / "Patch_extraction_v2.py"), "single", "--image", image, "--label", label, "--output", folder, "--patch_size", "32", *words]

    subprocess.run(command(tmp_path / "unbroken"), check=True, capture_output=True)
    kills = 0
    for wanted in (20, 120, 250):
        words = ["--resume"] if kills else []
        process = subprocess.Popen(command(tmp_path / "out", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        journal = tmp_path / "out" / ".unfinished" / "journal.jsonl"
        while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
            assert set(path.name for path in (tmp_path / "out").iterdir()) <= {".unfinished", ".lock"}
    assert kills == 3
    assert subprocess.run(command(tmp_path / "out", "--resume"), capture_output=True).returncode == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


# ---------------------------------------------------------------- what lies beside the patches


def test_patches_gpkg_holds_an_outline_and_the_counts_of_every_patch(tmp_path, single):
    image, label, _, codes = scene_and_label(tmp_path, nodata=0)
    assert single(image, label, tmp_path / "out", "--label_map", "0=0", "1=1", "2=2", "3=3", "4=ignore")[0] == 0
    frame = geopandas.read_file(tmp_path / "out" / "patches.gpkg")
    rows = rows_of(tmp_path / "out")
    assert frame.crs == "EPSG:32630" and len(frame) == len(rows) == 6
    for patch in frame.itertuples():
        row = rows[patch.id]
        assert patch.geometry.equals(square(int(row["row"]), int(row["col"])))
        assert (patch.patch, patch.scene, patch.split, f"{patch.nodata_share:g}") == (row["patch"], "scene.tif", row["split"], f"{float(row['nodata_share']):g}")
        here = codes[int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
        assert [patch.class_0, patch.class_1, patch.class_2, patch.class_3] == [(here == c).sum() for c in range(4)] and patch.labelled_pixels == (here != 4).sum()


def test_patches_gpkg_of_scenes_in_two_zones_is_in_degrees_and_of_plain_pictures_in_pixels(tmp_path, script):
    for number, crs in ((1, "EPSG:32630"), (2, "EPSG:32631")):
        for kind in ("image", "label"):
            (tmp_path / "data").mkdir(exist_ok=True)
            write_raster(tmp_path / "data" / f"{kind}_{number}.tif", np.ones((16, 16), "uint8"), crs=crs)
    assert script("Patch_extraction_v2", "batch", "--data_dir", tmp_path / "data", "--output", tmp_path / "out", "--patch_size", 16)[0] == 0
    frame = geopandas.read_file(tmp_path / "out" / "patches.gpkg")
    assert frame.crs == "EPSG:4326" and frame.geometry.centroid.x.round(2).tolist() == [-3.0, 3.0]
    for kind in ("image", "label"):
        write_raster(tmp_path / f"{kind}.tif", np.ones((16, 32), "uint8"), crs=None, transform=rasterio.Affine.identity())
    assert script("Patch_extraction_v2", "single", "--image", tmp_path / "image.tif", "--label", tmp_path / "label.tif", "--output", tmp_path / "plain", "--patch_size", 16)[0] == 0
    frame = geopandas.read_file(tmp_path / "plain" / "patches.gpkg")
    assert frame.crs is None and frame.total_bounds.tolist() == [0, 0, 32, 16]


@pytest.mark.parametrize("words, wanted", [([], "deflate"), (["--compress", "lzw"], "lzw"), (["--compress", "zstd"], "zstd"), (["--compress", "none"], None), (["--no_compression"], None)])
def test_patches_are_compressed_as_asked_one_block_a_band(tmp_path, single, words, wanted):
    image, label, pixels, codes = scene_and_label(tmp_path)
    assert single(image, label, tmp_path / "out", *words)[0] == 0
    assert_exact(tmp_path / "out", pixels, codes)
    for path in (tmp_path / "out").glob("*/*/*.tif"):
        with rasterio.open(path) as src:
            assert (src.compression.name if src.compression else None) == wanted
            assert src.block_shapes == [(16, 16)] * src.count and (src.count == 1 or src.interleaving.name == "band")
            assert wanted is None or src.tags(ns="IMAGE_STRUCTURE").get("PREDICTOR") == "2"


def test_training_reads_patches_of_every_compression(tmp_path, single):
    from eoseg import raster

    image, label, pixels, codes = scene_and_label(tmp_path)
    for kind in ("deflate", "lzw", "zstd", "none"):
        single(image, label, tmp_path / kind, "--compress", kind)
        for row in rows_of(tmp_path / kind).values():
            here = np.s_[:, int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16]
            assert (raster.read_patch(tmp_path / kind / row["split"] / "images" / row["patch"])[0] == pixels[here]).all()


def test_statistics_of_floats_and_holes_are_those_of_the_training_patches(tmp_path, single):
    rng = np.random.default_rng(0)
    pixels = rng.normal(-12, 4, (2, 64, 96)).astype("float32")
    pixels[0, :20, :30] = np.nan
    pixels[1, 40:, 50:] = -9999
    image, label = write_raster(tmp_path / "s.tif", pixels, nodata=-9999), write_raster(tmp_path / "l.tif", np.ones((64, 96), "uint8"))
    assert single(image, label, tmp_path / "out")[0] == 0
    train = np.zeros((64, 96), bool)
    for row in rows_of(tmp_path / "out").values():
        if row["split"] == "train":
            train[int(row["row"]) : int(row["row"]) + 16, int(row["col"]) : int(row["col"]) + 16] = True
    for band, found in zip(pixels, metadata_of(tmp_path / "out")["statistics"]):
        values = band[train & np.isfinite(pixels).all(0) & (band != -9999)].astype(float)
        assert (found["valid_pixels"], found["min"], found["max"]) == (len(values), values.min(), values.max())
        assert [found["mean"], found["std"]] == pytest.approx([values.mean(), values.std()], rel=1e-9)
        assert [found[f"p{p}"] for p in (1, 50, 99)] == pytest.approx(np.percentile(values, [1, 50, 99]), rel=2**-11)


def test_a_patch_that_a_power_cut_emptied_is_cut_again(tmp_path, single, monkeypatch):
    image, label, _, _ = scene_and_label(tmp_path)
    single(image, label, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stopping(patch, places, "divide", 0)
        assert single(image, label, tmp_path / "out")[0] == 130
    (tmp_path / "out/.unfinished/images/patch_2.tif").write_bytes(b"")
    (tmp_path / "out/.unfinished/labels/patch_4.tif").unlink()
    journal = tmp_path / "out/.unfinished/journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'["patch_9.tif", {"spl')  # torn
    assert single(image, label, tmp_path / "out", "--resume")[0] == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


def test_a_doubtful_nodata_tag_is_noticed_across_a_resume(tmp_path, single, monkeypatch):
    codes = np.zeros((32, 48), "uint8")
    codes[16:] = 3  # the class that makes the tag doubtful comes in the second row of cells
    codes[0, 0] = 1  # and the tag in the first
    image, label = write_raster(tmp_path / "s.tif", coded(32, 48)), write_raster(tmp_path / "l.tif", codes, nodata=1)
    with monkeypatch.context() as patch:
        patch.setattr(cutting, "read_jobs", lambda sources, labels, cells, real=cutting.read_jobs: real(sources, labels, cells[:3]))
        stopping(patch, places, "divide", 0)
        patch.setattr(extract, "look_back", lambda *args: None)
        single(image, label, tmp_path / "out")
    assert (tmp_path / "out/.unfinished/journal.jsonl").read_bytes().count(b"\n") == 3
    assert "l.tif: its nodata tag 1 lies among the classes" in error_of(*single(image, label, tmp_path / "out", "--resume")[::2])


def test_a_wide_striped_scene_is_read_in_parts_and_the_same(tmp_path, single, monkeypatch):
    from eoseg import raster

    image, label, pixels, codes = scene_and_label(tmp_path, 48, 96, blockysize=1)
    for name, strip, row in (("whole", 10**9, 10**9), ("parts", 2000, 10**9), ("lost", 200, 100)):
        monkeypatch.setattr(raster, "STRIP", strip)
        monkeypatch.setattr(raster, "KEPT", row)
        assert single(image, label, tmp_path / name)[0] == 0
        assert_exact(tmp_path / name, pixels, codes)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "lost")


@pytest.mark.parametrize("damage", ["cut", "zeroed", "unended"])
def test_statistics_that_a_power_cut_spoilt_are_made_again(tmp_path, single, monkeypatch, damage):
    image, label, _, _ = scene_and_label(tmp_path)
    single(image, label, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stopping(patch, places, "divide", 0)
        assert single(image, label, tmp_path / "out")[0] == 130
    statistics, journal = (tmp_path / "out/.unfinished" / name for name in ("statistics.bin", "journal.jsonl"))
    content = statistics.read_bytes()
    statistics.write_bytes(content[: len(content) // 2] + (bytes(len(content) - len(content) // 2) if damage == "zeroed" else b""))
    if damage == "unended":
        statistics.write_bytes(content)
        journal.write_bytes(journal.read_bytes().rstrip(b"\n"))
        with monkeypatch.context() as patch:
            stopping(patch, places, "divide", 0)
            assert single(image, label, tmp_path / "out", "--resume")[0] == 130
        assert journal.read_bytes().count(b"\n") == 6
    assert single(image, label, tmp_path / "out", "--resume")[0] == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


@pytest.mark.parametrize("left", [["settings.json"], ["settings.json", "complete"], ["complete"], ["labels"]])
def test_a_kill_while_the_staging_folder_goes_away_can_be_taken_up(tmp_path, single, monkeypatch, left):
    image, label, _, _ = scene_and_label(tmp_path)
    single(image, label, tmp_path / "unbroken")
    with monkeypatch.context() as patch:
        stopping(patch, places, "divide", 0)
        single(image, label, tmp_path / "out")
    for path in (tmp_path / "out/.unfinished").iterdir():
        if path.name not in left:
            extract.files.remove(path)
    if "complete" in left:
        extract.files.remove(tmp_path / "out/.unfinished")  # it goes first, and what is complete lies in its place by then
    assert single(image, label, tmp_path / "out", "--resume")[0] == 0
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "unbroken")


@pytest.mark.parametrize("where", ["write", "add"])
def test_no_file_is_closed_while_the_reader_still_reads(tmp_path, single, monkeypatch, where):
    from eoseg import raster, staging

    image, label, _, _ = scene_and_label(tmp_path, 160, 48)
    reading, closed, raw, close = [], [], raster.Scene.raw, raster.Scene.close

    def slow(scene, window):
        reading.append(1)
        time.sleep(0.05)
        reading.pop()
        return raw(scene, window)

    monkeypatch.setattr(raster.Scene, "raw", slow)
    monkeypatch.setattr(raster.Scene, "close", lambda scene: closed.append(len(reading)) or close(scene))
    stopping(monkeypatch, *{"write": (cutting, "write"), "add": (staging.Journal, "add")}[where], 4)
    assert single(image, label, tmp_path / "out")[0] == 130
    assert closed and not any(closed)


def test_no_path_of_an_area_stands_in_the_metadata(tmp_path, single):
    image, label, _, _ = scene_and_label(tmp_path)
    area = write_vector(tmp_path / "area.gpkg", [square(0, 0, 32)])
    assert single(image, label, tmp_path / "out", "--aoi", area)[0] == 0
    assert metadata_of(tmp_path / "out")["settings"]["aoi"] == "area.gpkg" and str(tmp_path) not in (tmp_path / "out/patch_metadata.json").read_text()
