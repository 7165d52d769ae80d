"""Scenes that lead elsewhere: VRTs, files beside a raster, names that GDAL understands. Nothing is reached that the user has not named."""

import os
import shutil
import socket
import threading
import time

import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from conftest import write_raster
from cutouts import assert_exact
from faults import assert_mapped, assert_refused, assert_worked, brightest

HEIGHT, WIDTH = 32, 48
PIXELS = np.random.default_rng(0).integers(1, 98, (1, HEIGHT, WIDTH)).astype("uint8")
PIXELS[PIXELS % 3 == 0] += 104
WHERE = "<SRS>EPSG:32630</SRS><GeoTransform>500000,10,0,4800000,0,-10</GeoTransform>"
SOURCE = '<VRTRasterBand dataType="Byte" band="1"><{kind}><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>{more}</{kind}></VRTRasterBand>'


@pytest.fixture
def home(tmp_path):
    """A folder with one good raster, in which scenes are made."""
    (tmp_path / "home").mkdir()
    write_raster(tmp_path / "home" / "in.tif", PIXELS)
    return tmp_path / "home"


@pytest.fixture
def scripts(fate, tmp_path, point_models):
    """The fates of mapping a scene and of cutting it, as functions."""
    net, label = brightest(tmp_path, 1), write_raster(tmp_path / "label.tif", np.ones((HEIGHT, WIDTH), "uint8"))

    def mapped(scene, *more):
        return fate("Predict_large_image_v2", "--model", net, "--input", scene, "--output", tmp_path / "out" / "map.tif", "--patch_size", 64, "--overlap", 16, "--device", "cpu", *more)

    def cut(scene):
        return fate("Patch_extraction_v2", "single", "--image", scene, "--label", label, "--output", tmp_path / "cut", "--patch_size", 16)

    return mapped, cut


@pytest.fixture(scope="module")
def server():
    """An address of this machine, and the list of what was asked of it."""
    asked, listener = [], socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                there, _ = listener.accept()
            except OSError:
                return
            with there:
                asked.append(there.recv(4096).split(b"\r\n")[0])
                there.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    listener.close()


def vrt(path, *bands, height=HEIGHT, width=WIDTH, more=""):
    path.write_text(f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">{WHERE}{more}{"".join(bands)}</VRTDataset>')
    return path


def source(name, relative=1, kind="SimpleSource", more=""):
    return SOURCE.format(name=name, relative=relative, kind=kind, more=more)


def raw(name, relative=1, size=1, kind="Byte", line=WIDTH):
    return (f'<VRTRasterBand dataType="{kind}" band="1" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT="{relative}">{name}</SourceFilename>'
            f"<ImageOffset>0</ImageOffset><PixelOffset>{size}</PixelOffset><LineOffset>{line}</LineOffset></VRTRasterBand>")


def computed(language, code):
    return ('<VRTRasterBand dataType="Byte" band="1" subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType>'
            f"<PixelFunctionLanguage>{language}</PixelFunctionLanguage><PixelFunctionCode><![CDATA[{code}]]></PixelFunctionCode>"
            '<SimpleSource><SourceFilename relativeToVRT="1">in.tif</SourceFilename></SimpleSource></VRTRasterBand>')


def chain(home, length, branches=1):
    """VRTs, each of the one before, `branches` times."""
    name = "in.tif"
    for i in range(length):
        band = source(name)
        inner = band[band.index("<SimpleSource") : band.index("</VRTRasterBand")]
        name = vrt(home / f"{i}.vrt", band.replace(inner, inner * branches)).name
    return home / name


# ---------------------------------------------------------------- VRTs


def numbers(path):
    path.with_name("in.raw").write_bytes(PIXELS.tobytes())
    return vrt(path, raw("in.raw"))


READ = {
    "a source": lambda path: vrt(path, source("in.tif")),
    "a source with a table": lambda path: vrt(path, source("in.tif", kind="ComplexSource", more="<LUT>0:0,255:255</LUT>")),
    "rows of numbers": numbers,
    "a few, one within the other": lambda path: shutil.copy(chain(path.parent, 5), path),
    "many, of one": lambda path: shutil.copy(chain(path.parent, 4, 6), path),
}


@pytest.mark.parametrize("kind", READ)
def test_a_vrt_over_its_own_folder_is_mapped_right(scripts, home, tmp_path, kind):
    mapped, cut = scripts
    READ[kind](home / "s.vrt")
    assert_worked(mapped(home / "s.vrt"))
    assert_mapped(tmp_path / "out" / "map.tif", PIXELS)
    assert_worked(cut(home / "s.vrt"))
    assert len(assert_exact(tmp_path / "cut", PIXELS)) == 6


def short(path):
    path.with_name("in.raw").write_bytes(PIXELS.tobytes()[:-1])
    return vrt(path, raw("in.raw"))


def upwards(path):
    """Rows from the last to the first, which begin before the file does not."""
    path.with_name("in.raw").write_bytes(PIXELS.tobytes())
    return vrt(path, raw("in.raw", size=2, kind="UInt16", line=2 * WIDTH))


REACHING = {
    "another folder": (lambda path: vrt(path, source("/etc/hostname", 0)), "s.vrt: points outside its own folder, at /etc/hostname"),
    "a folder above": (lambda path: vrt(path, source("../label.tif")), "s.vrt: points outside its own folder, at ../label.tif"),
    "a server": (lambda path: vrt(path, source("/vsicurl/{server}/x.tif", 0)), "s.vrt: points outside its own folder, at /vsicurl/"),
    "numbers elsewhere": (lambda path: vrt(path, raw("/etc/passwd", 0)), "s.vrt: points outside its own folder, at /etc/passwd"),
    "numbers that end early": (short, "in.raw: has 1535 bytes"),
    "numbers of another type": (upwards, "in.raw: has 1536 bytes"),
    "a program in Python": (lambda path: vrt(path, computed("Python", f"open('{path}.ran', 'w')\ndef f(*a, **k): pass")), "s.vrt: holds PixelFunctionLanguage"),
    "a program in C++": (lambda path: vrt(path, computed("C++", "")), "s.vrt: holds PixelFunctionLanguage"),
    "places from another file": (lambda path: vrt(path, source("in.tif"), more='<Metadata domain="GEOLOCATION"><MDI key="X&#95;DATASET">/etc/x.tif</MDI></Metadata>'), "s.vrt: holds X_DATASET"),
    "heights from another file": (lambda path: vrt(path, source("in.tif"), more="<DEMPath>/etc/x.tif</DEMPath>"), "s.vrt: holds DEMPath"),
    "options of its sources": (lambda path: vrt(path, source("in.tif", more='<OpenOptions><OOI key="a">b</OOI></OpenOptions>')), "s.vrt: holds OOI"),
    "itself": (lambda path: vrt(path, source("s.vrt")), "s.vrt: refers to itself"),
    "itself by way of another": (lambda path: vrt(path, source(vrt(path.with_name("t.vrt"), source("s.vrt")).name)), "s.vrt: refers to itself"),
    "a long chain": (lambda path: shutil.copy(chain(path.parent, 40), path), "leads through too many VRTs"),
    "a bomb": (lambda path: shutil.copy(chain(path.parent, 9, 8), path), "leads through too many VRTs"),
    "nothing": (lambda path: vrt(path, source("missing.tif")), "missing.tif: no such file"),
    "no band": (lambda path: vrt(path), "s.vrt: "),
    "all the world": (lambda path: vrt(path, source("in.tif"), height=2**31 - 1, width=2**31 - 1), "s.vrt: claims 2147483647 x 2147483647 pixels in"),
    "200 km of nothing": (lambda path: vrt(path, source("in.tif"), height=200000, width=200000), "s.vrt: claims 200000 x 200000 pixels in"),
    "no size": (lambda path: vrt(path, source("in.tif"), height=0, width=0), "s.vrt: cannot be opened as a raster"),
    "less than nothing": (lambda path: vrt(path, source("in.tif"), height=-5), "s.vrt: cannot be opened as a raster"),
    "half a text": (lambda path: path.write_text(vrt(path, source("in.tif")).read_text()[:-60]), "s.vrt: "),
    "a JPEG cut short": (lambda path: vrt(path, source(cut_short(path.with_name("in.jpg")).name)), "cannot be read"),
}


def cut_short(path):
    rasterio.shutil.copy(path.with_name("in.tif"), path, driver="JPEG")
    path.write_bytes(path.read_bytes()[:500])
    return path


@pytest.mark.parametrize("kind", REACHING)
def test_a_vrt_that_reaches_out_or_is_a_trap_is_refused_at_once(scripts, home, server, kind):
    make, words = REACHING[kind]
    make(home / "s.vrt")
    (home / "s.vrt").write_text((home / "s.vrt").read_text().replace("{server}", server[0]))
    begin = time.process_time()
    for run in scripts:
        assert_refused(run(home / "s.vrt"), words, left=r"\.part$")
    assert time.process_time() - begin < 10 and not server[1] and not list(home.glob("*.ran"))


@pytest.mark.parametrize("name", ["s.tif", "s.img", "s.png", "s"])
def test_a_vrt_under_another_name_is_refused(scripts, home, name):
    vrt(home / name, source("in.tif"))
    for run in scripts:
        assert_refused(run(home / name), f"{name}: is a VRT under another suffix")


# ---------------------------------------------------------------- pointers

SERVICES = {
    "WMS": "<GDAL_WMS><Service name='TMS'><ServerUrl>{0}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service><DataWindow><UpperLeftX>0</UpperLeftX><UpperLeftY>9</UpperLeftY>"
           "<LowerRightX>9</LowerRightX><LowerRightY>0</LowerRightY><TileLevel>0</TileLevel><SizeX>48</SizeX><SizeY>32</SizeY></DataWindow><BandsCount>1</BandsCount></GDAL_WMS>",
    "WMTS": "<GDAL_WMTS><GetCapabilitiesUrl>{0}</GetCapabilitiesUrl></GDAL_WMTS>",
    "WCS": "<WCS_GDAL><ServiceURL>{0}</ServiceURL><CoverageName>a</CoverageName></WCS_GDAL>",
    "MRF": '<MRF_META><CachedSource><Source>/vsicurl/{0}/x</Source></CachedSource><Raster><Size x="48" y="32" c="1"/><PageSize x="48" y="32" c="1"/></Raster></MRF_META>',
    "GTI": "<GDALTileIndexDataset><IndexDataset>/vsicurl/{0}/x.gpkg</IndexDataset></GDALTileIndexDataset>",
    "VRT": f'<VRTDataset rasterXSize="48" rasterYSize="32">{WHERE}<Metadata><MDI key="INTERNAL_MASK_FLAGS_1">2</MDI></Metadata>{source("/vsicurl/{0}/x.tif", 0)}</VRTDataset>',
}


@pytest.mark.parametrize("suffix", ["img", "tif", "xml"])
@pytest.mark.parametrize("kind", SERVICES)
def test_a_file_that_is_but_an_address_is_refused_and_the_address_not_asked(scripts, home, server, kind, suffix):
    (home / f"s.{suffix}").write_text(SERVICES[kind].format(server[0]))
    for run in scripts:
        assert_refused(run(home / f"s.{suffix}"), f"s.{suffix}: ")
    assert not server[1]


@pytest.mark.parametrize("ending", [".msk", ".ovr", ".aux", ".aux.xml"])
@pytest.mark.parametrize("kind", SERVICES)
def test_an_address_beside_a_scene_is_not_asked(scripts, home, server, kind, ending):
    (home / f"in.tif{ending}").write_text(SERVICES[kind].format(server[0]))
    one = scripts[0](home / "in.tif", "--quicklook")
    assert not server[1]
    if kind == "VRT" and ending in (".msk", ".ovr"):
        assert_refused(one, f"in.tif{ending}: is a VRT under another suffix")
    elif ending == ".msk":
        assert_refused(one, "in.tif.msk: cannot be used as the mask of")
    else:
        assert_worked(one)


def test_overviews_on_a_server_are_refused(scripts, home, server):
    (home / "in.tif.aux.xml").write_text(f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">/vsicurl/{server[0]}/x.tif</MDI></Metadata></PAMDataset>')
    for run in scripts:
        assert_refused(run(home / "in.tif"), "in.tif: has its overviews elsewhere; remove the OVERVIEW_FILE from in.tif.aux.xml")
    assert not server[1]


# ---------------------------------------------------------------- files beside a scene

BAND = "<PAMRasterBand band='1'>{}</PAMRasterBand>"
NOTES = {
    "empty": "", "noise": "\0\ufffd<<<", "half": "<PAMDataset><PAMRasterBand band='1'>", "deep": "<PAMDataset>" + "<a>" * 5000,
    "another band": "<PAMRasterBand band='99'><NoDataValue>5</NoDataValue></PAMRasterBand>",
    "NaN as nodata": BAND.format("<NoDataValue>nan</NoDataValue>"), "a word as nodata": BAND.format("<NoDataValue>none</NoDataValue>"),
    "a short geotransform": "<GeoTransform>1,2</GeoTransform>", "entities": "<!DOCTYPE a [<!ENTITY x 'aaaa'><!ENTITY y '&x;&x;'>]><PAMDataset><Metadata>&y;</Metadata></PAMDataset>",
    "an odd name": BAND.format("<Description>\n\n\x1b[31m</Description>"),
}


@pytest.mark.parametrize("kind", NOTES)
def test_damaged_notes_beside_a_scene_change_no_pixel(scripts, home, tmp_path, kind):
    (home / "in.tif.aux.xml").write_text(NOTES[kind] if "PAMDataset" in NOTES[kind] else f"<PAMDataset>{NOTES[kind]}</PAMDataset>" if "<" in NOTES[kind][:1] else NOTES[kind])
    assert_worked(scripts[0](home / "in.tif"))
    assert_mapped(tmp_path / "out" / "map.tif", PIXELS)
    assert_worked(scripts[1](home / "in.tif"))
    assert len(assert_exact(tmp_path / "cut", PIXELS, nodata={"NaN as nodata": None, "a word as nodata": 0}.get(kind))) == 6  # GDAL reads words as 0


@pytest.mark.parametrize("numbers", ["0,0,0,0,0,0", "nan,nan,0,0,0,nan", "0,1,1,0,1,1"])
def test_a_place_beside_a_scene_that_leads_nowhere_is_refused(scripts, home, numbers):
    (home / "in.tif.aux.xml").write_text(f"<PAMDataset><GeoTransform>{numbers}</GeoTransform></PAMDataset>")
    for run in scripts:
        assert_refused(run(home / "in.tif"), "in.tif: its geotransform leads nowhere")


@pytest.mark.parametrize("crs", ["nonsense", "EPSG:99999", 'PROJCS["x"'])
def test_a_crs_that_nobody_knows_is_refused_and_not_dropped(scripts, home, crs):
    (home / "in.tif.aux.xml").write_text(f"<PAMDataset><SRS>{crs}</SRS></PAMDataset>")
    vrt(home / "s.vrt", source("other.tif"))
    (home / "s.vrt").write_text((home / "s.vrt").read_text().replace("EPSG:32630", crs))
    write_raster(home / "other.tif", PIXELS)
    for run in scripts:
        assert_refused(run(home / "in.tif"), "in.tif.aux.xml: names a CRS that nobody knows", "gdal_edit.py -a_srs")
        assert_refused(run(home / "s.vrt"), "s.vrt: names a CRS that nobody knows")


def test_nodata_and_crs_beside_a_scene_count_as_they_do_for_gdal(scripts, home, tmp_path):
    value = int(PIXELS[0, 3, 4])
    (home / "in.tif.aux.xml").write_text(f"<PAMDataset><SRS>EPSG:32631</SRS>{BAND.format(f'<NoDataValue>{value}</NoDataValue>')}</PAMDataset>")
    assert_worked(scripts[0](home / "in.tif"))
    assert_mapped(tmp_path / "out" / "map.tif", PIXELS, PIXELS[0] != value)
    with rasterio.open(tmp_path / "out" / "map.tif") as src:
        assert src.crs == "EPSG:32631"


@pytest.mark.parametrize("content", [b"", b"hello", b"II*\0" + b"\xff" * 200, None], ids=["empty", "text", "noise", "another raster"])
def test_overviews_do_not_matter(scripts, home, tmp_path, content):
    other = write_raster(tmp_path / "other.tif", np.full((1, 16, 24), 200, "uint8")).read_bytes()
    (home / "in.tif.ovr").write_bytes(other if content is None else content)
    assert_worked(scripts[0](home / "in.tif"))
    assert_mapped(tmp_path / "out" / "map.tif", PIXELS)


@pytest.mark.parametrize("lines, placed", [("10 0 0 -10 500005 4799995", True), ("0 0 0 0 0 0", False), ("x y z", False), ("10", False)])
def test_a_world_file_places_a_scene_when_it_can(scripts, home, tmp_path, lines, placed):
    tifffile.imwrite(home / "s.tif", PIXELS[0])
    (home / "s.tfw").write_text("\n".join(lines.split()) + "\n")
    assert_worked(scripts[0](home / "s.tif"))
    assert_mapped(tmp_path / "out" / "map.tif", PIXELS)
    with rasterio.open(tmp_path / "out" / "map.tif") as src:
        assert src.transform == (Affine(10, 0, 5e5, 0, -10, 48e5) if placed else Affine.identity())


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", [
    "NETCDF:x.nc:var", "GTIFF_DIR:1:x.tif", "WMS:http://127.0.0.1:9/", "DERIVED_SUBDATASET:LOGAMPLITUDE:x.tif", "<VRTDataset/>", "/vsizip/", "/vsizip/missing.zip/a.tif",
    "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x.tif", "ftp://127.0.0.1:9/x.tif", "zip://missing.zip!a.tif", "/vsistdin/", "/vsimem/x.tif", "/vsigzip//etc/hostname",
    "", "-", ".", "/dev/null", "/dev/zero", "x" * 5000 + ".tif", "a\nb.tif", "%s.tif", "nul\ud800.tif",
])
def test_a_name_that_is_no_raster_fails_quickly(scripts, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    begin = time.monotonic()
    assert_refused(scripts[0](name))
    assert time.monotonic() - begin < 10


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs Linux")
def test_a_file_that_cannot_be_read_is_named(scripts):
    for run in scripts:
        assert_refused(run("/proc/self/mem"), "/proc/self/mem: cannot be read (Input/output error)")
