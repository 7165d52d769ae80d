"""Options of the three scripts: each named once, in a dataclass that checks itself, from which the flags come."""

import dataclasses as dc
import difflib
import re
from typing import Optional

from eoseg.errors import SetupError
from eoseg.flags import at_least, auto_or, check_fields, flag_of, option
from eoseg.memory import size
from eoseg.tiles import BLENDS

NETWORKS = ("unet-dropout", "unet", "unet++", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3", "deeplabv3+",
            "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
OWN_ENCODER = ("unet-dropout", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large")
LOSSES = ("ce", "dice", "focal", "tversky", "dice_ce", "focal_dice", "combo", "focal_tversky", "lovasz", "jaccard")
SMOOTHED = ("ce", "dice_ce", "combo")  # have a cross entropy, whose labels can be smoothed
MOST = 2**32 - 1  # that any whole number may be: libraries and floating-point numbers hold it
HEAVIEST = 1e6  # of weights in a loss: what is larger leaves float32 when it is summed up


def check_names(names, where, remedy="each class needs its own."):
    """Raises SetupError when names of classes cannot be told from one another, or cannot be shown."""
    for name in names:
        if not name.strip() or not name.isprintable():
            raise SetupError(f"{where}: {name!r} is no name for a class, which needs a character to be seen, and none that controls a screen; {remedy}")
    if len(set(names)) < len(names):
        raise SetupError(f"{where}: a name is given twice; {remedy}")


@dc.dataclass
class TrainingConfig:
    """Everything a training run is told. It checks itself, whoever built it: flags, a checkpoint, a notebook."""

    model_name: str = option(dc.MISSING, "network: " + ", ".join(NETWORKS), flag="--model", section="what is learned, from what")
    dataset_root: str = option(dc.MISSING, "folder that holds train/, validation/ (and test/), or Patch/train/ ...")
    mode: str = option("multiclass", "binary: one class against the rest", choices=("multiclass", "binary"))
    num_classes: int = option(5, "number of classes, 0 to N-1; binary mode always has two", flag="--classes", type=at_least(1))
    class_names: Optional[list] = option(None, "one name per class, in order", nargs="+", none="auto: those of the patches")
    val_strategy: str = option("split", "validate on validation/, or by folds", choices=("split", "kfold"))
    n_splits: int = option(5, "folds of kfold", type=at_least(2))
    fold_by: Optional[str] = option(None, "what shares a fold: patches that touch, those of a scene, or only those of one place", choices=("block", "scene", "random"),
                                    none="block when the patches are georeferenced, else random")
    subdirectories: list = option(("train", "validation"), "folders whose patches kfold divides; test/ stays unseen", nargs="+")
    patch_subdir: str = option("Patch", "folder under dataset_root in which train/ ... are looked for first")
    bands: Optional[list] = option(None, "bands to use, by number from 1 or by name, in this order", nargs="+", none="all")
    in_channels: Optional[int] = option(None, "number of bands; an error when the patches disagree", type=at_least(1), none="from the patches")
    patch_size: Optional[int] = option(None, "pixels; patches of other sizes are cut or padded to it", type=at_least(1), none="from the patches")
    label_map: Optional[list] = option(None, "codes in the label files to classes: 11=0 21=1 -1=ignore", nargs="+", none="codes are classes")
    label_nodata: Optional[str] = option(None, "label value that means unlabelled, or none", none="the file's tag")
    normalization: str = option("auto", "band scaling, fitted on training pixels; auto: zscore with pretrained weights, else percentile",
                                choices=("auto", "percentile", "zscore", "none"))
    oversample: bool = option(False, "show patches that hold rare classes more often, common ones less")
    cache: str = option("auto", "decoded patches: packed into one file beside them (disk), in memory (ram), or read anew (none); auto: disk where there is room", choices=("auto", "none", "disk", "ram"))
    workers: Optional[int] = option(None, "loader processes, as far as there are batches and four a core; 0 loads in the main one", type=auto_or(at_least(0)), none="auto")

    data_augmentation: bool = option(True, "random changes of training patches", off="--no_data_augmentation", section="augmentation of training patches")
    augmentation: Optional[str] = option(None, "how strong; the flags below change single strengths", choices=("none", "basic", "strong"), none="basic")
    augment_scale: Optional[list] = option(None, "LO HI: zoom of every second patch, above 1 a random part of it", type=at_least(0.01, float, 100), nargs=2, none="of --augmentation")
    augment_rotation: Optional[float] = option(None, "degrees either way, of every second patch", type=at_least(0, float, 180), none="of --augmentation")
    augment_brightness: Optional[float] = option(None, "offset of a band, as a share of the patch's range", type=at_least(0, float, 1), none="of --augmentation")
    augment_contrast: Optional[float] = option(None, "gain of a band, as a share either way", type=at_least(0, float, 1), none="of --augmentation")
    augment_hue: Optional[float] = option(None, "turn of the colours, of a full circle; needs red, green and blue", type=at_least(0, float, 0.5), none="of --augmentation")
    augment_saturation: Optional[float] = option(None, "share either way; needs red, green and blue", type=at_least(0, float, 1), none="of --augmentation")
    augment_noise: Optional[float] = option(None, "deviation of Gaussian noise, as a share of the patch's range", type=at_least(0, float, 1), none="of --augmentation")
    augment_band_dropout: Optional[float] = option(None, "probability of a band to be blanked", type=at_least(0, float, 1), none="of --augmentation")

    encoder_name: str = option("resnet34", "encoder, for the networks that have a choice", section="the network and its first weights")
    pretrained: bool = option(True, "start the encoder from ImageNet weights", off="--no_pretrained")
    encoder_weights: Optional[str] = option(None, "imagenet, none, or a file with the encoder's weights", none="imagenet, as --pretrained says")
    init_weights: Optional[str] = option(None, "earlier checkpoint to start from (all but the head)", none="none")
    dropout_rate: float = option(0.3, "share of decoder channels dropped in training, 0 to 1", type=at_least(0, float, 1))
    freeze_encoder: bool = option(False, "keep the encoder as it is for the first --freeze_epochs")
    freeze_epochs: int = option(5, "epochs the encoder stays frozen, with --freeze_encoder; with --gradual_unfreeze, from one stage to the next", type=at_least(0))
    gradual_unfreeze: bool = option(False, "begin with a frozen encoder, let one stage of it go every --freeze_epochs, the deepest first")
    unfreeze_on_plateau: Optional[int] = option(None, "begin with a frozen encoder, let it go when the validation loss has not fallen for so many epochs", type=at_least(1), none="never")

    epochs: int = option(100, "epochs at most", type=at_least(1), section="optimisation")
    batch_size: int = option(8, "patches a batch; halved where they do not fit the GPU", type=at_least(1))
    accumulate: int = option(1, "batches a step of the optimiser", type=at_least(1))
    optimizer: str = option("adamw", "sgd has Nesterov momentum 0.9", choices=("adamw", "adam", "sgd"))
    learning_rate: float = option(5e-4, "of the decoder, and where nothing else is said of all", type=at_least(0, float))
    encoder_lr_scale: Optional[float] = option(None, "the encoder's learning rate, as a share of --learning_rate", type=at_least(0, float), none="1; with --unfreeze_on_plateau 0.1")
    layer_decay: float = option(1.0, "factor on the learning rate from one encoder stage to the next one towards the input, above 0 to 1", type=at_least(0, float, 1))
    weight_decay: Optional[float] = option(None, "not on biases and normalisation layers", type=at_least(0, float), none="adamw 1e-2, adam 0, sgd 1e-4")
    scheduler_type: str = option("reduce_plateau", "learning-rate schedule", choices=("reduce_plateau", "cosine", "one_cycle", "poly", "constant"))
    warmup_epochs: int = option(0, "epochs of straight rise before the schedule", type=at_least(0))
    warmup_lr: float = option(1e-6, "learning rate the rise begins at", type=at_least(0, float))
    patience: int = option(15, "epochs without a better score before the run stops", type=at_least(1))
    monitor: str = option("iou", "validation score that decides on stopping and on the plateau", choices=("iou", "loss"))
    clip: Optional[float] = option(None, "largest norm of the gradient, above 0", type=at_least(0, float), none="no limit")
    ema: Optional[float] = option(None, "decay of a moving average of the weights, which is then what is validated and kept; 0.999 is usual", type=at_least(0, float, 1), none="none")
    use_amp: bool = option(False, "mixed precision: bfloat16 where the hardware has it, else float16 on CUDA")
    amp_dtype: str = option("auto", "type of --use_amp", choices=("auto", "bf16", "fp16"))
    compile: bool = option(False, "translate the network with torch.compile; pays on GPUs and long runs")

    loss_type: str = option("dice_ce", "loss to minimise", choices=LOSSES, section="the loss")
    dice_weight: float = option(0.5, "share of Dice in dice_ce, focal_dice and combo, 0 to 1", type=at_least(0, float, 1))
    label_smoothing: float = option(0.0, "share of each label given to all classes alike, in the cross entropy of " + ", ".join(SMOOTHED), type=at_least(0, float, 1))
    focal_gamma: float = option(2.0, "how far easy pixels are played down; 0 is plain cross entropy", type=at_least(0, float, 100))
    focal_alpha: float = option(0.25, "binary: weight of class 1; multiclass: factor of the focal term; 0 to 1", type=at_least(0, float, 1))
    tversky_alpha: float = option(0.3, "cost of a false positive", type=at_least(0, float, HEAVIEST))
    tversky_beta: float = option(0.7, "cost of a miss", type=at_least(0, float, HEAVIEST))
    focal_tversky_gamma: float = option(4 / 3, "how far nearly right classes are played down in focal_tversky, 1 to 3", type=at_least(1, float, 3))
    use_class_weights: bool = option(True, "weigh rare classes up", off="--no_class_weights")
    class_weight_method: str = option("inverse_sqrt", "how class counts become weights", choices=("inverse_freq", "inverse_sqrt", "effective_samples"))
    custom_class_weights: Optional[list] = option(None, "one weight per class, in place of counted ones", type=at_least(0, float, HEAVIEST), nargs="+", none="counted")

    seed: int = option(42, "seed of weights, order and augmentation", type=at_least(0, most=2**32 - 1), section="the run and what it leaves")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto is cuda when there is one")
    log_per_class: bool = option(True, "IoU of each class in the log and as a plot", off="--no_log_per_class")
    save_csv: bool = option(True, "write the CSV log", off="--no_save_csv")
    calibrate: bool = option(False, "fit how sure the network says it is to how often it is right on validation, and a binary network's threshold; prediction uses both")
    profile: Optional[int] = option(None, "trace so many steps of the first epoch (<model>_trace.json), and tell where its time went", type=at_least(1), none="no")
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
        self._check_augmentation()
        self._check_together()

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

    @property
    def encoder_shown(self):
        """` with resnet34`, for networks that have a choice of encoders; nothing for the others."""
        return "" if self.model_name in OWN_ENCODER else f" with {self.encoder_name}"

    @property
    def encoder_scale(self):
        """Share of the learning rate that the encoder has."""
        return self.encoder_lr_scale if self.encoder_lr_scale is not None else 0.1 if self.unfreeze_on_plateau else 1.0

    @property
    def begins_frozen(self):
        return self.freeze_encoder or self.gradual_unfreeze or self.unfreeze_on_plateau is not None

    def _check_names(self):
        if self.model_name not in NETWORKS:
            near = difflib.get_close_matches(self.model_name, NETWORKS, n=3) or NETWORKS
            raise SetupError(f"--model {self.model_name}: no such network; did you mean {', '.join(near)}?")
        for name in ("dataset_root", "save_dir"):
            if not getattr(self, name).strip():
                raise SetupError(f"--{name}: is empty; name a folder (. is the one you are in).")
        if self.resume and self.overwrite:
            raise SetupError("--resume and --overwrite: one goes on with a run, the other replaces it; give one of them.")

    def _check_numbers(self):
        for field in dc.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value > MOST:
                raise SetupError(f"{flag_of(field)}: a number of {len(str(value))} digits; give {MOST:,} or less.")
        if self.warmup_epochs and self.warmup_lr > self.learning_rate:
            raise SetupError(f"--warmup_lr {self.warmup_lr:g}: lies above --learning_rate {self.learning_rate:g}, to which the warm-up rises; give less.")
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
        check_names(self.class_names or [], "--class_names")
        if self.custom_class_weights and max(self.custom_class_weights) < 1 / HEAVIEST:
            raise SetupError("--custom_class_weights: all are 0, or nearly; at least one class must count.")

    def _check_augmentation(self):
        given = [name for name in vars(self) if name.startswith("augment_") and getattr(self, name) is not None]
        if not self.data_augmentation and (given or self.augmentation not in (None, "none")):
            raise SetupError(f"--no_data_augmentation and --{given[0] if given else 'augmentation ' + self.augmentation}: contradict each other; give one of them.")
        if self.augmentation == "none" and given:
            raise SetupError(f"--augmentation none and --{given[0]}: contradict each other; give one of them.")
        if self.augment_scale and self.augment_scale[0] > self.augment_scale[1]:
            raise SetupError(f"--augment_scale {self.augment_scale[0]:g} {self.augment_scale[1]:g}: give the smaller one first.")
        if not self.data_augmentation:
            self.augmentation = "none"
        self.augmentation = self.augmentation or "basic"
        self.data_augmentation = self.augmentation != "none"

    def _check_together(self):
        if self.gradual_unfreeze and self.unfreeze_on_plateau:
            raise SetupError("--gradual_unfreeze and --unfreeze_on_plateau: both say when the encoder is let go; give one of them.")
        if self.unfreeze_on_plateau and self.unfreeze_on_plateau >= self.patience:
            raise SetupError(f"--unfreeze_on_plateau {self.unfreeze_on_plateau}: the run would stop before, by --patience {self.patience}; give fewer epochs.")
        if self.fold_by and self.val_strategy != "kfold":
            raise SetupError(f"--fold_by {self.fold_by}: is for --val_strategy kfold; give that, or leave it out.")
        if self.amp_dtype != "auto" and not self.use_amp:
            raise SetupError(f"--amp_dtype {self.amp_dtype}: needs --use_amp.")
        if self.label_smoothing and self.loss_type not in SMOOTHED:
            raise SetupError(f"--label_smoothing {self.label_smoothing:g}: {self.loss_type} has no cross entropy to smooth; choose --loss_type {', '.join(SMOOTHED)}.")
        for name, usual in (("layer_decay", 0.75), ("clip", 1.0)):
            if getattr(self, name) == 0:
                raise SetupError(f"--{name} 0: nothing would be learned; it must be above 0, {usual:g} is usual.")
        for name, usual in (("ema", 0.999), ("label_smoothing", 0.1)):
            if getattr(self, name) == 1:
                raise SetupError(f"--{name} 1: nothing would be learned; it must be below 1, {usual:g} is usual.")


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
    blend: str = option("cosine", "how a tile's weight falls towards its neighbours; none: each pixel is the nearest tile's", choices=BLENDS)
    bands: Optional[list] = option(None, "bands of the scene by number or name, in the network's order", nargs="+", none="by name, else by place")
    resample_to_training: bool = option(False, "bring the scene to the pixel size of the training patches; the map has it too")
    aoi: Optional[str] = option(None, "polygons: map only inside them", none="the whole scene")
    vector_crs: Optional[str] = option(None, "CRS of --aoi where its file names none or a wrong one; image: the scene's own", none="the file's")
    threshold: Optional[float] = option(None, "binary: probability from which a pixel is class 1, 0 to 1", type=at_least(0, float, 1), none="0.5, or what --calibrate found in training")
    temperature: Optional[float] = option(None, "by which the network's logits are divided, 0.01 to 100", type=at_least(0.01, float, 100), none="1, or what --calibrate found in training")
    background_value: int = option(0, "binary: 1 swaps 0 and 1 in the map", type=int, choices=(0, 1))
    normalization_percentile: Optional[float] = option(None, "percentile each tile is divided by, for checkpoints without statistics", type=at_least(0, float), none="99")
    normalize_per_channel: bool = option(False, "that percentile of each band by itself")
    batch_size: Optional[int] = option(None, "tiles at once", type=auto_or(at_least(1)), none="auto")
    device: str = option("auto", "auto, cpu, cuda, cuda:1 ...; auto is cuda when there is one")
    use_amp: bool = option(False, "mixed precision: bfloat16 where the hardware has it, else float16 on CUDA")
    tta: str = option("none", "average the answers to a tile seen in several ways: flips (4), or d4 (flips and quarter turns, 8)", choices=("none", "flips", "d4"))
    compile: bool = option(False, "have torch.compile translate the network: minutes first, quicker then")
    max_memory: Optional[int] = option(None, "memory the run may take, e.g. 8GB; a wide scene is cut into strips", type=size, none="half of what is free")
    input_nodata: Optional[float] = option(None, "scene value that means no data", none="the file's tag")
    require_all_bands: bool = option(False, "a pixel counts only when every band holds data")
    output_nodata: int = option(255, "map value of pixels without data", type=at_least(0))
    save_confidence: bool = option(False, "write <output>_confidence.tif: probability of the class that was mapped")
    save_probabilities: bool = option(False, "write <output>_probabilities.tif: a band per class")
    probability_dtype: str = option("uint8", "of those: uint8 in steps of 1/250 (the file's scale says so), or float32", choices=("uint8", "float32"))
    save_uncertainty: bool = option(False, "write <output>_uncertainty.tif: entropy, 0 (sure) to 1; with several answers to average, also how much they disagree")
    polygons: Optional[str] = option(None, "write the map's areas as polygons into this .gpkg, .geojson or .parquet; the suffix alone: beside the map", none="none")
    sieve: int = option(0, "polygons: patches of fewer pixels go to their largest neighbour", type=at_least(0))
    min_area: float = option(0.0, "polygons: leave out those of fewer hectares", type=at_least(0, float))
    simplify: float = option(0.0, "polygons: straighten outlines by about so many pixels, without gaps between neighbours", type=at_least(0, float))
    palette: Optional[str] = option(None, "file with a line per class: number or name, and its colour as #rrggbb or three numbers to 255", none="one safe for colour-blind eyes")
    original_codes: bool = option(False, "write the codes of the training data in place of class numbers")
    save_patches: bool = option(False, "write each tile's classes into <output>_patches/")
    quicklook: bool = option(False, "write <output>_quicklook.png: scene and map side by side, with a legend")
    overwrite: bool = option(False, "replace an existing map")
    resume: bool = option(False, "go on with a map that was cut off, with the same settings")
    dry_run: bool = option(False, "print tiles, memory, disk and time, and write nothing")

    def __post_init__(self):
        check_fields(self)
        if self.overlap >= self.patch_size:
            raise SetupError(f"--overlap {self.overlap}: must be smaller than --patch_size {self.patch_size}; a quarter of it is usual.")
        if self.normalization_percentile is not None and not 0 < self.normalization_percentile <= 100:
            raise SetupError(f"--normalization_percentile {self.normalization_percentile}: must lie above 0 and up to 100.")
        if self.output_nodata > 65535:
            raise SetupError(f"--output_nodata {self.output_nodata}: must fit the map's type, at most 65535; 255 is usual.")
        for given, flags, lacking, other in ((self.sieve or self.min_area or self.simplify, "--sieve, --min_area, --simplify", not self.polygons, "--polygons"),
                                             (self.vector_crs, "--vector_crs", not self.aoi, "--aoi"), (self.probability_dtype != "uint8", "--probability_dtype", not self.save_probabilities, "--save_probabilities")):
            if given and lacking:
                raise SetupError(f"{flags}: tell how {other} is done, which is not asked for; give {other} too, or leave them out.")
        if self.overwrite and self.resume:
            raise SetupError("--resume and --overwrite: one goes on with a map, the other replaces it; give one of them.")
