"""Options: named once, in a dataclass, from which the flags come; and the parser all three scripts share."""

import argparse
import dataclasses as dc
import difflib
import math
import re
import sys
from typing import Optional, get_args

from eoseg.errors import SetupError

NETWORKS = ("unet-dropout", "unet", "unet++", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "deeplabv3+",
            "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
LOSSES = ("ce", "dice", "focal", "tversky", "dice_ce", "focal_dice", "combo")


class Parser(argparse.ArgumentParser):
    """argparse, with our one-line errors, no abbreviations, and words such as -1=ignore or -3.4e+38 taken as values."""

    words = ()  # those being parsed

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def parse_known_args(self, args=None, namespace=None):
        self.words = [protected(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(self.words, namespace)

    def parse_args(self, args=None, namespace=None):
        options, unknown = self.parse_known_args(args, namespace)
        for text in unknown:
            near = difflib.get_close_matches(text.split("=")[0], self.flags(), n=1)
            raise SetupError(f"{text.strip()}: no such option" + (f"; did you mean {near[0]}?" if near else "; --help lists them."))
        return options

    def flags(self):
        return [flag for action in every_action(self) for flag in action.option_strings]

    def error(self, message):
        message = re.sub(r"^argument (.+?): (.+)", r"\1: \2", message)
        missing = re.match(r"the following arguments are required: (.+)", message)
        if not missing:
            raise SetupError(f"{message}; see --help.")
        for text in self.words:  # --modle unet: the typo says more than the --model that lacks
            near = difflib.get_close_matches(text.split("=")[0], missing[1].split(", "), n=1)
            if near and text.startswith("--") and text.split("=")[0] not in self.flags():
                raise SetupError(f"{text}: no such option; did you mean {near[0]}?")
        raise SetupError(f"{missing[1]}: missing; give it, or see --help.")


def protected(word):
    """A leading space keeps argparse from taking a value that starts with a minus for a flag."""
    return " " + word if re.match(r"-([\d.]|inf)", word) else word


def every_action(parser):
    """All options of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for sub in dict.fromkeys(action.choices.values()):
                yield from every_action(sub)


def option(default, help, flag=None, choices=None, type=None, nargs=None, off=None, none=None):
    """A dataclass field that carries its own command-line help.

    Args:
        flag: its flag, where that is not `--` and the field's name.
        off: the flag that turns a default of True off.
        none: what the help calls a default of None.
    """
    factory = {} if default is dc.MISSING else {"default_factory": lambda: list(default)} if isinstance(default, tuple) else {"default": default}
    return dc.field(**factory, metadata={"help": help, "flag": flag, "choices": choices, "type": type, "nargs": nargs, "off": off, "none": none})


def flag_of(field):
    return field.metadata["flag"] or f"--{field.name}"


def add_options(parser, options_class, only=None):
    """Give `parser` one flag per field of `options_class` (those of `only`). Names, types and defaults live in the dataclass alone."""
    group = parser.add_argument_group("what the job is told")
    for f in dc.fields(options_class):
        if only and f.name not in only:
            continue
        meta = f.metadata
        default = f.default_factory() if f.default is dc.MISSING and f.default_factory is not dc.MISSING else f.default
        if f.type is bool:
            state = " (on unless " + meta["off"] + ")" if meta["off"] else ""
            group.add_argument(flag_of(f), dest=f.name, action="store_true", default=default, help=meta["help"] + state)
            if meta["off"]:
                group.add_argument(meta["off"], dest=f.name, action="store_false", help=argparse.SUPPRESS)
            continue
        required = default is dc.MISSING
        shown = meta["none"] if default is None else " ".join(map(str, default)) if isinstance(default, list) else default
        group.add_argument(flag_of(f), dest=f.name, type=type_of(f), choices=meta["choices"], nargs=meta["nargs"],
                           required=required, default=None if required else default,
                           help=meta["help"] + ("" if required or shown is None else f" (default: {shown})"))


def take(options_class, args):
    """Pick the fields of `options_class` out of parsed `args`; its own checks run here."""
    return options_class(**{f.name: getattr(args, f.name) for f in dc.fields(options_class)})


def check_fields(options):
    """Hold every field to its flag's type and choices, so that a notebook's mistake is told like a typed one.

    Raises:
        SetupError: a value that its flag would refuse.
    """
    for f in dc.fields(options):
        value, flag, meta = getattr(options, f.name), flag_of(f), f.metadata
        if f.type is bool and not isinstance(value, bool):
            raise SetupError(f"{flag} {value}: is neither True nor False.")
        if f.type is bool or value is None and f.default is None:
            continue
        values = [value] if isinstance(value, str) or not meta["nargs"] else value
        try:
            values = [type_of(f)(str(one)) for one in values]
        except argparse.ArgumentTypeError as error:
            raise SetupError(f"{flag}: {error}; see --help.") from None
        except (ValueError, TypeError):
            raise SetupError(f"{flag} {value}: is no {type_of(f).__name__}; see --help.") from None
        if meta["choices"] and values[0] not in meta["choices"]:
            raise SetupError(f"{flag} {value}: no such choice; it is one of {', '.join(map(str, meta['choices']))}.")
        setattr(options, f.name, values if meta["nargs"] else values[0])  # plain values: checkpoints hold nothing else


def type_of(field):
    """What turns a flag's text into the field's value."""
    kind = next(iter(get_args(field.type)), field.type)
    return field.metadata["type"] or (kind if kind in (int, float) else word)


def at_least(least, kind=int, most=math.inf):
    """A flag's type: a finite number from `least` to `most`."""
    def parse(text):
        value = kind(text)
        if not least <= value <= most or value == math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of {least} or more" if most == math.inf else f"{text} does not lie between {least} and {most}")
        return value

    parse.__name__ = kind.__name__
    return parse


def word(text):
    """A flag's type: text, freed from the space that `protected` put before it."""
    return text[1:] if text.startswith(" -") else text


def auto_or(kind):
    """A flag's type: None for `auto`, else `kind`."""
    def parse(text):
        return None if text.lower() == "auto" else kind(text)

    parse.__name__ = getattr(kind, "__name__", "value")
    return parse


@dc.dataclass
class TrainingConfig:
    """Everything a training run is told. It checks itself, whoever built it: flags, a checkpoint, a notebook."""

    model_name: str = option(dc.MISSING, "network: " + ", ".join(NETWORKS), flag="--model")
    dataset_root: str = option(dc.MISSING, "folder that holds train/, validation/ (and test/), or Patch/train/ ...")
    mode: str = option("multiclass", "binary: one class against the rest", choices=("multiclass", "binary"))
    num_classes: int = option(5, "number of classes, 0 to N-1; binary mode always has two", flag="--classes", type=at_least(1))
    val_strategy: str = option("split", "validate on validation/, or by folds", choices=("split", "kfold"))
    n_splits: int = option(5, "folds of kfold", type=at_least(2))
    subdirectories: list = option(("train", "validation"), "folders whose patches kfold divides; test/ stays unseen", nargs="+")
    patch_subdir: str = option("Patch", "folder under dataset_root in which train/ ... are looked for first")
    seed: int = option(42, "seed of weights, order and augmentation", type=at_least(0, most=2**32 - 1))
    workers: Optional[int] = option(None, "loader processes; 0 loads in the main one", type=auto_or(at_least(0)), none="auto")
    bands: Optional[list] = option(None, "bands to use, by number from 1 or by name, in this order", nargs="+", none="all")
    in_channels: Optional[int] = option(None, "number of bands; an error when the patches disagree", type=at_least(1), none="from the patches")
    patch_size: Optional[int] = option(None, "pixels; patches of other sizes are cut or padded to it", type=at_least(1), none="from the patches")
    label_map: Optional[list] = option(None, "codes in the label files to classes: 11=0 21=1 -1=ignore", nargs="+", none="codes are classes")
    label_nodata: Optional[str] = option(None, "label value that means unlabelled, or none", none="the file's tag")
    normalization: str = option("auto", "band scaling, fitted on training pixels; auto: zscore with pretrained weights, else percentile",
                                choices=("auto", "percentile", "zscore", "none"))
    data_augmentation: bool = option(True, "random flips, turns, scale and light", off="--no_data_augmentation")
    epochs: int = option(100, "epochs at most", type=at_least(1))
    batch_size: int = option(8, "patches a step", type=at_least(1))
    learning_rate: float = option(5e-4, "AdamW's", type=at_least(0, float))
    weight_decay: float = option(1e-2, "AdamW's; not on biases and normalisation layers", type=at_least(0, float))
    patience: int = option(15, "epochs without a better score before the run stops", type=at_least(1))
    monitor: str = option("iou", "validation score that decides on stopping and on the plateau", choices=("iou", "loss"))
    scheduler_type: str = option("reduce_plateau", "learning-rate schedule", choices=("reduce_plateau", "cosine", "one_cycle"))
    warmup_epochs: int = option(0, "epochs of straight rise before the schedule", type=at_least(0))
    warmup_lr: float = option(1e-6, "learning rate the rise begins at", type=at_least(0, float))
    encoder_name: str = option("resnet34", "encoder, for the networks that have a choice")
    pretrained: bool = option(True, "start the encoder from ImageNet weights", off="--no_pretrained")
    encoder_weights: Optional[str] = option(None, "imagenet, none, or a file with the encoder's weights", none="imagenet, as --pretrained says")
    init_weights: Optional[str] = option(None, "earlier checkpoint to start from (all but the head)", none="none")
    dropout_rate: float = option(0.3, "share of decoder channels dropped in training, 0 to 1", type=at_least(0, float, 1))
    freeze_encoder: bool = option(False, "keep the encoder as it is for the first --freeze_epochs")
    freeze_epochs: int = option(5, "epochs the encoder stays frozen, with --freeze_encoder", type=at_least(0))
    loss_type: str = option("dice_ce", "loss to minimise", choices=LOSSES)
    dice_weight: float = option(0.5, "share of Dice in dice_ce, focal_dice and combo, 0 to 1", type=at_least(0, float, 1))
    focal_gamma: float = option(2.0, "how far easy pixels are played down; 0 is plain cross entropy", type=at_least(0, float))
    focal_alpha: float = option(0.25, "binary: weight of class 1; multiclass: factor of the focal term; 0 to 1", type=at_least(0, float, 1))
    tversky_alpha: float = option(0.3, "cost of a false positive", type=at_least(0, float))
    tversky_beta: float = option(0.7, "cost of a miss", type=at_least(0, float))
    use_class_weights: bool = option(True, "weigh rare classes up", off="--no_class_weights")
    class_weight_method: str = option("inverse_sqrt", "how class counts become weights", choices=("inverse_freq", "inverse_sqrt", "effective_samples"))
    custom_class_weights: Optional[list] = option(None, "one weight per class, in place of counted ones", type=at_least(0, float), nargs="+", none="counted")
    class_names: Optional[list] = option(None, "one name per class, in order", nargs="+", none="auto: those of the patches")
    use_amp: bool = option(False, "mixed precision: bfloat16 where the hardware has it, else float16 on CUDA")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto is cuda when there is one")
    log_per_class: bool = option(True, "IoU of each class in the log and as a plot", off="--no_log_per_class")
    save_csv: bool = option(True, "write the CSV log", off="--no_save_csv")
    save_dir: str = option("./trained_models", "folder for checkpoints, logs and plots")
    resume: bool = option(False, "go on with the run in --save_dir that was cut off")
    overwrite: bool = option(False, "replace an earlier run of the same --model in --save_dir")

    def __post_init__(self):
        if self.mode == "binary":
            self.num_classes = 1  # one logit; its classes are 0 and 1
        check_fields(self)
        if self.class_names == ["auto"]:
            self.class_names = None
        self._check_names()
        self._check_numbers()

    @property
    def class_count(self):
        """Classes in the label: two in binary mode."""
        return 2 if self.mode == "binary" else self.num_classes

    @property
    def weights_from(self):
        """Where the encoder starts: `imagenet`, a file, or None for scratch."""
        if self.encoder_weights:
            return None if self.encoder_weights.lower() == "none" else self.encoder_weights
        return "imagenet" if self.pretrained and self.model_name != "unet-dropout" and not self.init_weights else None

    def _check_names(self):
        if self.model_name not in NETWORKS:
            near = difflib.get_close_matches(self.model_name, NETWORKS, n=3) or NETWORKS
            raise SetupError(f"--model {self.model_name}: no such network; did you mean {', '.join(near)}?")
        if self.resume and self.overwrite:
            raise SetupError("--resume and --overwrite: one goes on with a run, the other replaces it; give one of them.")

    def _check_numbers(self):
        if self.learning_rate == 0:
            raise SetupError(f"--learning_rate {self.learning_rate}: must be above 0; 5e-4 is usual.")
        if self.tversky_alpha == self.tversky_beta == 0:
            raise SetupError("--tversky_alpha and --tversky_beta: both 0 leave nothing to minimise; 0.3 and 0.7 are usual.")
        if self.mode == "multiclass" and not 2 <= self.num_classes <= 255:
            raise SetupError(f"--classes {self.num_classes}: must lie between 2 and 255 (255 is the value for unlabelled); --mode binary for one class.")
        for name in ("class_names", "custom_class_weights"):
            given = getattr(self, name)
            if given is not None and len(given) != self.class_count:
                raise SetupError(f"--{name}: {len(given)} given for {self.class_count} classes; give one per class.")
        if self.class_names and len(set(self.class_names)) < len(self.class_names):
            raise SetupError("--class_names: a name is given twice; each class needs its own.")
        if self.custom_class_weights and not any(self.custom_class_weights):
            raise SetupError("--custom_class_weights: all are 0; at least one class must count.")


@dc.dataclass
class ExtractionConfig:
    """How patches are cut. It checks itself."""

    patch_size: int = option(224, "side of a patch in pixels", type=at_least(1))
    image_channels: Optional[int] = option(None, "the first N bands", type=at_least(1), none="all bands")
    bands: Optional[list] = option(None, "bands by number from 1 or by name, in this order", nargs="+", none="all, but for an alpha band")
    label_channels: int = option(1, "bands of a label raster; a label is one band of class codes", type=at_least(1))
    train_ratio: float = option(0.75, "share of the patches", type=at_least(0, float))
    val_ratio: float = option(0.20, "share of the patches", type=at_least(0, float))
    test_ratio: float = option(0.05, "share of the patches", type=at_least(0, float))
    id_column: str = option("AUTO", "grid column that names the cells; AUTO: the first unique one of id, fid, patch_id, else the row number")
    random_seed: int = option(42, "seed of the split", type=at_least(0, most=2**32 - 1))
    label_map: Optional[list] = option(None, "codes or class names to class numbers: 11=0 water=2 -1=ignore", nargs="+", none="codes are classes")
    label_field: Optional[str] = option(None, "polygon labels: attribute that holds the class; outside is unlabelled", none="none")
    label_burn: Optional[int] = option(None, "polygon labels: class of every polygon; outside is 0", type=at_least(0), none="none")
    label_outside: Optional[str] = option(None, "class outside the polygons: a number, or ignore", none="as --label_field and --label_burn say")
    label_nodata: Optional[str] = option(None, "label value that means unlabelled, or none", none="the file's tag")
    input_nodata: Optional[float] = option(None, "image value that means no data", none="the file's tag")
    require_all_bands: bool = option(False, "a pixel counts only when every band holds data")
    split_strategy: str = option("random", "what goes to one split as a whole: each place, each block of --block_size, what --split_column says, or each scene",
                                 choices=("random", "block", "column", "scene"))
    block_size: Optional[str] = option(None, "side of a block: patches (4), metres (2000m) or kilometres (2km)", none="4")
    buffer: int = option(0, "leave out training patches less than this many patches away from validation and test, and validation patches so near to test", type=at_least(0))
    split_column: Optional[str] = option(None, "grid column that says train, validation or test", none="split by ratio")
    stride: Optional[int] = option(None, "pixels from one cell of the automatic grid to the next; less than --patch_size overlaps", type=at_least(1), none="--patch_size")
    aoi: Optional[str] = option(None, "polygons of the area of interest: cells beyond it are left out, pixels beyond it unlabelled", none="the whole scene")
    vector_crs: Optional[str] = option(None, "CRS of grid and label polygons where the file's is missing or wrong: e.g. EPSG:32630, or image for the image's own", none="the file's")
    edge: str = option("pad", "cells partly outside the image: padded with nodata, or skipped", choices=("pad", "skip"))
    resample: bool = option(False, "scale cells of another size to --patch_size pixels")
    interpolation: str = option("bilinear", "of images with --resample, and of sensors on another grid (--modality); labels are always nearest", choices=("nearest", "bilinear", "bicubic", "lanczos"))
    max_nodata: Optional[float] = option(None, "leave out patches with a larger share of invalid pixels, 0 to 1", type=at_least(0, float, 1), none="no limit")
    min_labelled: Optional[float] = option(None, "leave out patches with a smaller share of labelled pixels, 0 to 1", type=at_least(0, float, 1), none="one pixel")
    keep_unlabelled: bool = option(False, "keep patches without a labelled pixel")
    compress: str = option("deflate", "compression of the patches", choices=("deflate", "lzw", "zstd", "none"))
    no_compression: bool = option(False, "the same as --compress none")
    save_metadata: bool = option(False, "accepted for older scripts: the metadata is always written")
    dry_run: bool = option(False, "print what would be cut, and write nothing")
    overwrite: bool = option(False, "replace the patches in --output")
    resume: bool = option(False, "go on with an extraction that was cut off, with the same settings")
    verbose: bool = option(False, "name every cell and what became of it")

    def __post_init__(self):
        check_fields(self)
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if abs(total - 1) > 0.001:
            raise SetupError(f"--train_ratio, --val_ratio, --test_ratio: add up to {total:g}; they must add up to 1.")
        if self.label_channels != 1:
            raise SetupError(f"--label_channels {self.label_channels}: a label is one band of class codes; "
                             "make one with gdal_translate -b N, or gdal_calc for one-hot bands.")
        if self.image_channels and self.bands:
            raise SetupError("--image_channels and --bands: both choose bands; give one of them.")
        if self.label_field is not None and self.label_burn is not None:
            raise SetupError("--label_field and --label_burn: one takes the class from an attribute, the other is the class; give one.")
        if self.label_burn is not None and self.label_burn > 254:
            raise SetupError(f"--label_burn {self.label_burn}: a class lies between 0 and 254 (255 is unlabelled).")
        if self.overwrite and self.resume:
            raise SetupError("--resume and --overwrite: one goes on with a run, the other replaces it; give one of them.")
        if self.no_compression:
            self.compress = "none"
        self._check_split()

    def _check_split(self):
        if self.split_column and self.split_strategy in ("block", "scene"):
            raise SetupError(f"--split_strategy {self.split_strategy} and --split_column: both say which patch goes where; give one of them.")
        if self.split_strategy == "column" and not self.split_column:
            raise SetupError("--split_strategy column: needs --split_column NAME, the grid's column of train, validation and test.")
        if self.split_column:
            self.split_strategy = "column"
        if self.block_size is not None and self.split_strategy != "block":
            raise SetupError(f"--block_size {self.block_size}: is for --split_strategy block.")
        self.block  # raises when it is none

    @property
    def block(self):
        """Side of a block: (number, "cells" or "m").

        Raises:
            SetupError: --block_size is no size.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(km|m|)", (self.block_size or "4").strip().lower())
        number = float(match[1]) * (1000 if match[2] == "km" else 1) if match else 0
        if not number or not match[2] and number != int(number):
            raise SetupError(f"--block_size {self.block_size}: write a number of patches (4), or a length in metres (2000m) or kilometres (2km).")
        return number, "m" if match[2] else "cells"


@dc.dataclass
class PredictionConfig:
    """How a map is made from a scene. It checks itself."""

    model_name: Optional[str] = option(None, "network, for checkpoints that do not say", none="from the checkpoint")
    encoder_name: Optional[str] = option(None, "encoder, for checkpoints that do not say", none="from the checkpoint")
    in_channels: Optional[int] = option(None, "bands, for checkpoints that do not say", type=at_least(1), none="from the checkpoint")
    num_classes: Optional[int] = option(None, "classes, for checkpoints that do not say; 1 is binary", type=at_least(1), none="from the checkpoint")
    patch_size: int = option(512, "side of a tile in pixels", type=at_least(1))
    overlap: int = option(128, "pixels neighbouring tiles share", type=at_least(0))
    threshold: float = option(0.5, "binary: probability from which a pixel is class 1, 0 to 1", type=at_least(0, float, 1))
    background_value: int = option(0, "binary: 1 swaps 0 and 1 in the map", type=int, choices=(0, 1))
    normalization_percentile: Optional[float] = option(None, "percentile each tile is divided by, for checkpoints without statistics", type=at_least(0, float), none="99")
    normalize_per_channel: bool = option(False, "that percentile of each band by itself")
    batch_size: Optional[int] = option(None, "tiles at once", type=auto_or(at_least(1)), none="auto")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto is cuda when there is one")
    use_amp: bool = option(False, "mixed precision: bfloat16 where the hardware has it, else float16 on CUDA")
    input_nodata: Optional[float] = option(None, "scene value that means no data", none="the file's tag")
    require_all_bands: bool = option(False, "a pixel counts only when every band holds data")
    output_nodata: int = option(255, "map value of pixels without data", type=at_least(0))
    save_confidence: bool = option(False, "write <output>_confidence.tif: probability of the class that was mapped")
    save_patches: bool = option(False, "write each tile's classes into <output>_patches/")
    quicklook: bool = option(False, "write <output>_quicklook.png: scene and map side by side, with a legend")
    overwrite: bool = option(False, "replace an existing map")
    resume: bool = option(False, "go on with a map that was cut off, with the same settings")

    def __post_init__(self):
        check_fields(self)
        if self.overlap >= self.patch_size:
            raise SetupError(f"--overlap {self.overlap}: must be smaller than --patch_size {self.patch_size}; a quarter of it is usual.")
        if self.normalization_percentile is not None and not 0 < self.normalization_percentile <= 100:
            raise SetupError(f"--normalization_percentile {self.normalization_percentile}: must lie above 0 and up to 100.")
        if self.output_nodata > 65535:
            raise SetupError(f"--output_nodata {self.output_nodata}: must fit the map's type, at most 65535; 255 is usual.")
        if self.overwrite and self.resume:
            raise SetupError("--resume and --overwrite: one goes on with a map, the other replaces it; give one of them.")
