"""A file that is but a pointer is not followed: not to a server, not to another file of this machine."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from cutouts import square, write_vector

from eoseg import gdalenv, raster, vector
from eoseg.errors import DataError

WMS = ("<GDAL_WMS><Service name='TMS'><ServerUrl>http://127.0.0.1:9/${z}/${x}/${y}.png</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX>"
       "<UpperLeftY>9</UpperLeftY><LowerRightX>9</LowerRightX><LowerRightY>0</LowerRightY><TileLevel>1</TileLevel></DataWindow><BandsCount>3</BandsCount></GDAL_WMS>")


@pytest.mark.parametrize("name", ["scene.xml", "scene.img", "scene.dat"])
def test_a_service_named_like_an_image_is_refused(tmp_path, name):
    (tmp_path / name).write_text(WMS)
    with pytest.raises(DataError, match=name):
        raster.open_raster(tmp_path / name)


@pytest.mark.parametrize("name", ["grid.gpkg", "grid.geojson", "grid.shp", "grid.vrt", "grid.gml"])
def test_a_grid_that_points_at_another_file_is_refused(tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    secret = write_vector(tmp_path / "elsewhere" / "secret.gpkg", [square(0, 0)])
    (tmp_path / name).write_text(f"<OGRVRTDataSource><OGRVRTLayer name='secret'><SrcDataSource>{secret}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>")
    with pytest.raises(DataError, match=name):
        vector.read_layer(tmp_path / name)


def test_what_the_user_has_set_stays():
    code = "import os\nfrom eoseg import vector\nprint(os.environ['GDAL_CACHEMAX'], os.environ['GDAL_VRT_ENABLE_PYTHON'])"
    told = {name: value for name, value in os.environ.items() if name not in gdalenv.SETTINGS} | {"GDAL_CACHEMAX": "96"}
    run = subprocess.run([sys.executable, "-c", code], env=told, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("96 NO\n", "")
