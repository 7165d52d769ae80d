"""What the README and the sample promise."""

import re
import unittest.mock
from importlib import import_module

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = ("main_v2", "Predict_large_image_v2", "Patch_extraction_v2")


def parser_of(name):
    with unittest.mock.patch("eoseg.flags.Parser.parse_args", lambda self, argv=None: self):
        return import_module(name).parse([])


def test_every_flag_the_readme_names_exists():
    from eoseg.flags import every_action

    known = {flag for name in SCRIPTS for action in every_action(parser_of(name)) for flag in action.option_strings}
    assert not set(re.findall(r"--[a-z_]{3,}", README)) - known


def test_every_file_the_readme_links_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links and all((ROOT / link).exists() for link in links)
    assert "@" not in README.replace("git@", "") and all((ROOT / name).exists() for name in re.findall(r"`([\w/]+\.(?:py|sh)|\w+/[\w/]+\.gpkg)`", README))


@pytest.mark.parametrize("name, text", [("main_v2", "python main_v2.py"), ("Predict_large_image_v2", "python Predict"), ("Patch_extraction_v2", "python Patch")])
def test_the_commands_of_the_readme_parse(name, text):
    line = next(line for line in README.splitlines() if line.startswith(text))
    import_module(name).parse(line.split()[2:])


def test_the_demo_runs_the_scripts_the_readme_shows():
    demo = (ROOT / "sample/demo.sh").read_text(encoding="utf-8").replace("\\\n", " ")
    for name in SCRIPTS:
        line = next(line for line in demo.splitlines() if f"{name}.py" in line)
        import_module(name).parse(line.split(f"{name}.py")[1].split())


def test_sample_polygons_keep_to_one_split_and_every_split_has_every_class():
    geopandas = pytest.importorskip("geopandas")
    grid = geopandas.read_file(ROOT / "sample/grid.gpkg")
    polygons = geopandas.read_file(ROOT / "sample/training_polygons.geojson").to_crs(grid.crs)
    polygons["number"] = range(len(polygons))
    pairs = polygons.sjoin(grid[["split", "geometry"]], predicate="intersects")
    assert (pairs.groupby("number")["split"].nunique() == 1).all()
    kinds = pairs.drop_duplicates(["number", "split"]).groupby(["split", "name"]).size().unstack()
    assert set(kinds.columns) == {"water", "crop", "tree", "developed"} and (kinds >= 5).all(axis=None)
    assert polygons.geometry.is_valid.all()


def test_sample_scene_has_the_bands_and_nodata_its_readme_names():
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(ROOT / "sample/scene.tif") as scene:
        assert (scene.height, scene.width, scene.nodata, scene.crs.to_epsg()) == (1400, 1500, 0, 32621)
        assert scene.descriptions == ("blue", "green", "red")
        assert round(1 - (scene.dataset_mask() > 0).mean(), 3) == 0.194
