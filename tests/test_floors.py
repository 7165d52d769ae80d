"""The rules of the house: imports point down, each trade has one room, every option is obeyed."""

import ast
import re

import pytest
from conftest import ROOT

FLOORS = [  # a module imports only from floors above it in this list
    {"errors"},  # beneath all: even the lowest floor must be able to say what is wrong
    {"tiles", "files", "schedule", "vrt", "coding", "validity", "parallel", "flags", "stopping", "scaling", "scoring", "memory", "gdalenv", "gdallog", "claims", "patchfile"},
    {"vetting", "config", "bands", "intervals", "tiling"},
    {"raster", "normalize", "augment", "metrics", "unet", "device", "georef", "pairing", "patchset", "splits", "vector", "scenes", "optim", "runfolder", "profiling", "deciding"},
    {"data", "models", "checkpoint", "tracking", "plots", "patchscores", "calibrating", "advice", "areas", "cutting", "labels", "mapfile", "places", "staging", "survey", "packing"},
    {"network", "encoders", "patchplots", "legends", "plan", "stages", "source", "scoreplots", "partition", "sweeps", "fitting", "reading", "quickening", "polygons"},
    {"committee"},  # join what lies beneath: a network and its checkpoint, patches and their pack
    {"blending"},
    {"budget"},
    {"mapjob"},
    {"predict", "extract", "drawing", "panel", "comparing"},
    {"runstate", "mapping"},
    {"guarding", "runcard"},
    {"judging"},
    {"ending", "folds", "evaluating"},
    {"losses"},  # a floor of its own: nothing in eoseg/ may reach for it
    {"model_training_v2"},
    {"main_v2", "Predict_large_image_v2", "Patch_extraction_v2"},
]
WITHOUT_TORCH = {"errors", "tiles", "files", "raster", "normalize", "config", "flags", "extract", "plots", "Patch_extraction_v2", "schedule", "vrt", "coding",
                 "georef", "pairing", "patchset", "splits", "vector", "cutting", "labels", "tracking", "mapfile", "validity", "patchplots", "legends",
                 "parallel", "vetting", "places", "staging", "plan", "survey", "packing", "source", "stopping", "bands", "scoring", "intervals", "patchscores", "scoreplots", "partition", "sweeps", "comparing", "drawing", "panel", "advice",
                 "memory", "scenes", "tiling", "fitting", "reading", "polygons", "gdalenv", "gdallog", "patchfile"}
MODULES = [*ROOT.glob("*.py"), *ROOT.glob("eoseg/[!_]*.py")]
OPENERS = re.compile(r"\brasterio\.open\(|\btifffile\.(?:TiffFile|imread|imwrite)\(|\bcv2\.im(?:read|write)\(")


def imports(path):
    """Our own modules, and the top names of foreign packages, that `path` imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for first, *rest in (name.split(".") for name in names):
            yield rest[0] if first == "eoseg" else first


def closure(name):
    """Everything `name` imports, directly or through our own modules."""
    paths, seen, todo = {path.stem: path for path in MODULES}, set(), [name]
    while todo:
        for used in imports(paths[todo.pop()]):
            if used not in seen:
                seen.add(used)
                todo += [used] if used in paths else []
    return seen


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_only_reach_down(path):
    own = next(i for i, floor in enumerate(FLOORS) if path.stem in floor)  # fails for a file on no floor
    assert not set(imports(path)) & set().union(*FLOORS[own:])


@pytest.mark.parametrize("name", sorted(WITHOUT_TORCH))
def test_rooms_without_torch_reach_none(name):
    assert not closure(name) & {"torch", "torchvision", "segmentation_models_pytorch", "timm"}


def test_prediction_never_imports_training():
    assert not closure("Predict_large_image_v2") & {"model_training_v2", "losses", "main_v2"}


def test_losses_need_torch_alone():
    assert set(imports(ROOT / "losses.py")) == {"torch"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_only_raster_opens_images_and_only_files_replaces_them(path):
    text = path.read_text(encoding="utf-8")
    assert path.stem == "raster" or not OPENERS.search(text)
    assert path.stem == "files" or not re.search(r"\bos\.replace\(|\bshutil\.move\(", text)


@pytest.mark.parametrize("name", ["main_v2", "Predict_large_image_v2", "Patch_extraction_v2"])
def test_every_flag_is_read_somewhere(name):
    from importlib import import_module

    from eoseg.flags import every_action

    text = "\n".join(path.read_text(encoding="utf-8") for path in MODULES if path.stem != "config")
    text += re.sub(r"(?m)^    \w+: .*= option\(.*\n(?: {20,}.*\n)*", "", (ROOT / "eoseg/config.py").read_text(encoding="utf-8"))  # its declaration reads no flag
    import unittest.mock

    with unittest.mock.patch("eoseg.flags.Parser.parse_args", lambda self, argv=None: self):
        parser = import_module(name).parse([])
    unread = []
    for action in every_action(parser):
        if action.dest in ("help", "debug", "save_metadata"):  # --debug: errors.run looks for the word; --save_metadata: kept for older scripts, always on
            continue
        if not re.search(rf"\.{action.dest}\b|[\"']{action.dest}[\"']", text):
            unread.append(action.dest)
    assert not unread


def test_requirements_are_all_used_and_all_listed():
    names = {"segmentation-models-pytorch": "segmentation_models_pytorch", "scikit-learn": "sklearn", "opencv-python": "cv2"}
    listed = {re.split(r"[><=]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()}
    used = set().union(*(set(imports(path)) for path in [*MODULES, *ROOT.glob("benchmarks/*.py")]))  # scikit-learn: the forest that networks are held against
    assert not [name for name in listed if names.get(name, name) not in used]


def test_the_two_places_that_name_the_ignore_value_agree():
    import losses
    from eoseg import coding

    assert losses.IGNORE == coding.IGNORE == 255


def test_file_and_function_lengths_stay_readable():
    long = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno > 60:
                long.append(f"{path.name}:{node.name}")
        if text.count("\n") > 430:
            long.append(path.name)
    assert not long
