"""How GDAL is set up here. GDAL reads these once, at its first use, from the environment; what the user has set stays."""

import os

# Drivers for which a file is but a pointer, to a server, to a program, or to any other file of this machine; some are told by content, whatever the file's
# name. VRTs of rasters are not among them: they are looked through first (vetting).
POINTERS = ("WMS WMTS WCS WFS CSW OAPIF OGCAPI HTTP DAAS EEDA EEDAI PLMOSAIC PLSCENES STACIT STACTA NGW Carto AmigoCloud Elasticsearch ADBC GPSBabel "
            "GDALG GTI MRF DERIVED OGR_VRT")
SETTINGS = {
    "GDAL_SKIP": POINTERS,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
    "GDAL_CACHEMAX": "48",  # MB; GDAL's 5 % of memory grows with the machine, not with the job
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE",  # a JPEG file cut short would be filled with grey
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",  # it takes what memory held before for the rows that a PNG cut short lacks
    "GDAL_HTTP_CONNECTTIMEOUT": "20",  # seconds, for what users type as URLs; GDAL would wait for ever
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",  # bytes per second
    "CPL_LOG": os.devnull,  # where GDAL writes what no handler hears; stderr otherwise
}
for name, value in SETTINGS.items():
    os.environ.setdefault(name, value)
