"""The flags people already type, their defaults, and what is said of a wrong one."""

import dataclasses as dc
from pathlib import Path

import numpy as np
import pytest

import main_v2
import Patch_extraction_v2
import Predict_large_image_v2
from eoseg import flags
from eoseg.config import ExtractionConfig, PredictionConfig, TrainingConfig
from eoseg.errors import SetupError

TRAIN = ["--model", "unet", "--dataset_root", "patches"]
PREDICT = ["--model", "m.pth", "--input", "scene.tif", "--output", "map.tif"]
SINGLE = ["single", "--image", "i.tif", "--label", "l.tif", "--output", "out"]
BATCH = ["batch", "--data_dir", "data", "--output", "out"]
SCRIPTS = {"train": (main_v2.parse, TRAIN), "predict": (Predict_large_image_v2.parse, PREDICT), "single": (Patch_extraction_v2.parse, SINGLE),
           "extract": (Patch_extraction_v2.parse, ["extract", *SINGLE[1:]]), "batch": (Patch_extraction_v2.parse, BATCH),
           "visualize": (Patch_extraction_v2.parse, ["visualize", "--output", "out"]), "info": (Patch_extraction_v2.parse, ["info", "--output", "out"])}


def parsed(script, *words):
    parse, needed = SCRIPTS[script]
    return vars(parse([*needed, *words]))


# The contract: flag -> default, and words to try with what they must become. True: a switch.
CUTTING = {
    "--grid": (None, "g.gpkg", "g.gpkg"), "--patch_size": (224, "64", 64), "--image_channels": (None, "3", 3), "--label_channels": (1, "1", 1),
    "--train_ratio": (0.75, "0.6", 0.6), "--val_ratio": (0.20, "0.3", 0.3), "--test_ratio": (0.05, "0.1", 0.1), "--id_column": ("AUTO", "name", "name"),
    "--random_seed": (42, "0", 0), "--label_map": (None, "11=0 -1=ignore water=2", ["11=0", "-1=ignore", "water=2"]), "--label_field": (None, "class", "class"),
    "--label_burn": (None, "1", 1), "--label_outside": (None, "ignore", "ignore"), "--label_nodata": (None, "none", "none"),
    "--input_nodata": (None, "-9999", -9999.0), "--split_column": (None, "set", "set"), "--interpolation": ("bilinear", "lanczos", "lanczos"),
    "--no_compression": (False, True), "--verbose": (False, True), "--save_metadata": (False, True), "--bands": (None, "B02 3", ["B02", "3"]),
    "--max_nodata": (None, "0.5", 0.5), "--min_labelled": (None, "0.1", 0.1), "--keep_unlabelled": (False, True), "--overwrite": (False, True), "--resume": (False, True),
    "--require_all_bands": (False, True),
}
CONTRACT = {
    "single": CUTTING,
    "extract": CUTTING,
    "batch": {
        **CUTTING, "--recursive": (False, True), "--use_per_image_grid": (False, True),
        "--image_pattern": (r"^[Ii]mage[_-]?(\d+)\.tif{1,2}$", r"s(\d).tif", r"s(\d).tif"), "--label_pattern": (r"^[Ll]abel[_-]?(\d+)\.tif{1,2}$", "x", "x"),
    },
    "visualize": {"--split": ("train", "test", "test"), "--sample_index": (0, "7", 7)},
    "info": {},
    "train": {
        "--mode": ("multiclass", "binary", "binary"), "--classes": (5, "4", 4), "--val_strategy": ("split", "kfold", "kfold"), "--n_splits": (5, "3", 3),
        "--subdirectories": (["train", "validation"], "train validation test", ["train", "validation", "test"]), "--seed": (42, "0", 0), "--workers": (None, "0", 0),
        "--resume": (False, True), "--overwrite": (False, True), "--bands": (None, "1 NIR", ["1", "NIR"]), "--init_weights": (None, "a.pth", "a.pth"),
        "--monitor": ("iou", "loss", "loss"), "--patch_subdir": ("Patch", "P", "P"), "--in_channels": (None, "4", 4), "--patch_size": (None, "128", 128),
        "--data_augmentation": (True, True), "--epochs": (100, "3", 3), "--batch_size": (8, "2", 2), "--learning_rate": (5e-4, "1e-3", 1e-3),
        "--patience": (15, "4", 4), "--encoder_name": ("resnet34", "resnet18", "resnet18"), "--pretrained": (True, True), "--dropout_rate": (0.3, "0.1", 0.1),
        "--loss_type": ("dice_ce", "combo", "combo"), "--use_class_weights": (True, True), "--class_weight_method": ("inverse_sqrt", "inverse_freq", "inverse_freq"),
        "--custom_class_weights": (None, "1 2 0.5", [1.0, 2.0, 0.5]), "--focal_gamma": (2.0, "1", 1.0), "--focal_alpha": (0.25, "0.5", 0.5),
        "--tversky_alpha": (0.3, "0.4", 0.4), "--tversky_beta": (0.7, "0.6", 0.6), "--dice_weight": (0.5, "1", 1.0), "--freeze_encoder": (False, True),
        "--freeze_epochs": (5, "2", 2), "--scheduler_type": ("reduce_plateau", "one_cycle", "one_cycle"), "--warmup_epochs": (0, "3", 3),
        "--warmup_lr": (1e-6, "1e-5", 1e-5), "--use_amp": (False, True), "--log_per_class": (True, True), "--save_csv": (True, True),
        "--class_names": (None, "a b c", ["a", "b", "c"]), "--device": ("auto", "cuda", "cuda"), "--save_dir": ("./trained_models", "out", "out"),
        "--label_map": (None, "1=0 -1=ignore", ["1=0", "-1=ignore"]), "--label_nodata": (None, "-1", "-1"), "--encoder_weights": (None, "imagenet", "imagenet"),
        "--oversample": (False, True), "--cache": ("auto", "ram", "ram"), "--augmentation": (None, "strong", "strong"), "--augment_scale": (None, "0.5 2", [0.5, 2.0]),
        "--augment_rotation": (None, "90", 90.0), "--augment_brightness": (None, "0", 0.0), "--augment_contrast": (None, "0.2", 0.2), "--augment_hue": (None, "0.5", 0.5),
        "--augment_saturation": (None, "1", 1.0), "--augment_noise": (None, "0.01", 0.01), "--augment_band_dropout": (None, "0.1", 0.1), "--gradual_unfreeze": (False, True),
        "--unfreeze_on_plateau": (None, "4", 4), "--accumulate": (1, "4", 4), "--optimizer": ("adamw", "sgd", "sgd"), "--encoder_lr_scale": (None, "0.1", 0.1),
        "--layer_decay": (1.0, "0.75", 0.75), "--weight_decay": (None, "0", 0.0), "--clip": (None, "1", 1.0), "--ema": (None, "0.999", 0.999),
        "--amp_dtype": ("auto", "bf16", "bf16"), "--compile": (False, True), "--label_smoothing": (0.0, "0.1", 0.1), "--fold_by": (None, "block", "block"), "--calibrate": (False, True), "--focal_tversky_gamma": (4 / 3, "2", 2.0),
    },
    "predict": {
        "--model_name": (None, "unet", "unet"), "--encoder_name": (None, "resnet18", "resnet18"), "--in_channels": (None, "4", 4), "--num_classes": (None, "3", 3),
        "--patch_size": (512, "256", 256), "--overlap": (128, "0", 0), "--threshold": (None, "0.3", 0.3), "--temperature": (None, "2", 2.0), "--background_value": (0, "1", 1),
        "--normalization_percentile": (None, "98", 98.0), "--normalize_per_channel": (False, True), "--device": ("auto", "cpu", "cpu"),
        "--save_confidence": (False, True), "--save_patches": (False, True), "--input_nodata": (None, "-3.4e+38", -3.4e38), "--overwrite": (False, True),
        "--resume": (False, True), "--use_amp": (False, True), "--batch_size": (None, "4", 4), "--output_nodata": (255, "0", 0),
    },
}
DEST = {"--model": "model_name", "--classes": "num_classes"}
ROWS = [(script, flag, *row) for script, rows in CONTRACT.items() for flag, row in rows.items()]
OFF = {"--no_data_augmentation": "data_augmentation", "--no_pretrained": "pretrained", "--no_class_weights": "use_class_weights",
       "--no_log_per_class": "log_per_class", "--no_save_csv": "save_csv"}


@pytest.mark.parametrize("script, flag, default, words, value", [row if len(row) == 5 else (*row, row[3]) for row in ROWS], ids=lambda v: str(v)[:25])
def test_every_flag_of_the_contract_parses_and_has_its_default(script, flag, default, words, value):
    name = DEST.get(flag, flag[2:]) if script == "train" else flag[2:]
    assert parsed(script)[name] == default
    given = [flag] if words is True else [flag, *words.split(" ")]
    assert parsed(script, *given)[name] == value
    if words is not True and len(given) == 2:
        assert parsed(script, f"{flag}={words}")[name] == value


@pytest.mark.parametrize("flag, name", OFF.items())
def test_every_switch_that_is_on_has_its_no_form(flag, name):
    assert parsed("train", flag)[name] is False and parsed("train")[name] is True
    assert parsed("train", f"--{name}")[name] is True
    assert parsed("train", flag, f"--{name}")[name] is True and parsed("train", f"--{name}", flag)[name] is False  # the last word counts


def test_every_switch_that_is_on_is_listed_above():
    on = {f.name for options in (TrainingConfig, ExtractionConfig, PredictionConfig) for f in dc.fields(options) if f.default is True}
    assert on == set(OFF.values())


@pytest.mark.parametrize("script", SCRIPTS)
def test_required_flags_are_named_when_they_lack(script):
    parse, needed = SCRIPTS[script]
    start = needed[: len(needed) % 2]
    for at in range(len(start), len(needed), 2):
        with pytest.raises(SetupError, match=f"{needed[at]}: missing"):
            parse(needed[:at] + needed[at + 2 :])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_and_leaves_with_0(script, capsys):
    parse, needed = SCRIPTS[script]
    with pytest.raises(SystemExit) as stop:
        parse([*needed[: len(needed) % 2], "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and all(flag in said for flag in CONTRACT.get(script, {}))
    assert "None" not in said and "MISSING" not in said and "<factory" not in said and "<class" not in said


# ---------------------------------------------------------------- values that begin with a minus


@pytest.mark.parametrize("words", [
    ["--label_map", "-1=ignore"], ["--label_map", "-1=ignore", "11=0"], ["--label_map", "11=0", "-1=ignore"],
    ["--label_map", "11=0", "-1=ignore", "12=1", "--patch_size", "64"], ["--patch_size", "64", "--label_map", "-1=ignore", "11=0", "--verbose"],
    ["--verbose", "--label_map", "-1=ignore", "--overwrite"], ["--label_map", "-1=ignore", "-2=ignore", "-9999.0=ignore", "0=0"],
])
def test_minus_1_ignore_is_taken_in_any_place(words):
    for script in ("single", "extract", "batch"):
        taken = parsed(script, *words)["label_map"]
        assert taken == [word for word in words if "=" in word]
    start = [word for word in words if word not in ("--patch_size", "64", "--verbose")]
    assert vars(main_v2.parse([*start, *TRAIN]))["label_map"] == taken


@pytest.mark.parametrize("word, value", [("-3.4e+38", -3.4e38), ("-9999", -9999), ("-.5", -0.5), ("-.5e3", -500), ("-inf", -np.inf), ("0", 0), ("1e20", 1e20)])
@pytest.mark.parametrize("script", ["single", "batch", "predict"])
def test_input_nodata_takes_any_number(script, word, value):
    for words in (["--input_nodata", word], [f"--input_nodata={word}"], ["--input_nodata", word, "--overwrite"]):
        assert parsed(script, *words)["input_nodata"] == value
    assert np.isnan(parsed(script, "--input_nodata", "nan")["input_nodata"])


def test_auto_leaves_the_choice_to_the_run():
    assert parsed("train", "--workers", "auto")["workers"] is None and parsed("predict", "--batch_size", "AUTO")["batch_size"] is None
    assert flags.take(TrainingConfig, main_v2.parse([*TRAIN, "--class_names", "auto"])).class_names is None


def test_a_protected_word_comes_back_as_it_was():
    assert parsed("single", "--label_nodata", "-1", "--label_outside", "-1", "--id_column", "-3x", "--bands", "-1", "2")["label_nodata"] == "-1"
    found = parsed("train", "--class_names", "-1", "none of these", "--bands", "-5", "--save_dir", "-2nd run ")
    assert (found["class_names"], found["bands"], found["save_dir"]) == (["-1", "none of these"], ["-5"], "-2nd run ")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("script, words, said", [
    ("train", ["--epocs", "3"], "--epocs: no such option; did you mean --epochs?"),
    ("train", ["--epocs=3"], "--epocs=3: no such option; did you mean --epochs?"),
    ("train", ["--no_pretraned"], "--no_pretraned: no such option; did you mean --no_pretrained?"),
    ("train", ["--epoch", "3"], "--epoch: no such option; did you mean --epochs?"),  # no abbreviations
    ("train", ["--xyzzy"], "--xyzzy: no such option; --help lists them."),
    ("train", ["extra"], "extra: no such option"),
    ("single", ["--label_mpa", "11=0", "-1=ignore"], "--label_mpa: no such option; did you mean --label_map?"),
    ("batch", ["--image_patern", "x"], "--image_patern: no such option; did you mean --image_pattern?"),
    ("info", ["--patch_size", "3"], "--patch_size: no such option"),
    ("predict", ["--overlp", "3"], "--overlp: no such option; did you mean --overlap?"),
])
def test_an_unknown_option_is_named_with_the_one_that_was_meant(script, words, said):
    with pytest.raises(SetupError) as error:
        parsed(script, *words)
    assert str(error.value).startswith(said)


def test_a_typo_in_a_required_option_is_told_as_a_typo():
    with pytest.raises(SetupError, match="^--modle: no such option; did you mean --model"):
        main_v2.parse(["--modle", "unet", "--dataset_root", "x"])
    with pytest.raises(SetupError, match="^--imge=a: no such option; did you mean --image"):
        Patch_extraction_v2.parse(["single", "--imge=a", "--label", "b", "--output", "c"])


@pytest.mark.parametrize("words", [[], ["singel"], ["--output", "x"]])
def test_a_missing_or_unknown_subcommand_names_those_there_are(words):
    with pytest.raises(SetupError, match="single.*batch.*visualize.*info"):
        Patch_extraction_v2.parse(words)


WRONG = [
    ("train", "--mode", "triclass"), ("train", "--loss_type", "mse"), ("train", "--scheduler_type", "step"), ("train", "--monitor", "f1"), ("train", "--val_strategy", "loo"),
    ("train", "--class_weight_method", "x"), ("train", "--epochs", "0"), ("train", "--epochs", "1.5"), ("train", "--epochs", "ten"), ("train", "--batch_size", "-1"),
    ("train", "--learning_rate", "0"), ("train", "--learning_rate", "nan"), ("train", "--learning_rate", "inf"), ("train", "--learning_rate", "-1e-3"),
    ("train", "--dice_weight", "1.5"), ("train", "--focal_alpha", "-0.1"), ("train", "--focal_gamma", "-1"), ("train", "--tversky_alpha", "-1"),
    ("train", "--dropout_rate", "1.1"), ("train", "--n_splits", "1"), ("train", "--patience", "0"), ("train", "--seed", "-1"), ("train", "--seed", "99999999999999999999"),
    ("train", "--workers", "-1"), ("train", "--classes", "1"), ("train", "--classes", "256"), ("train", "--class_names", "a b"), ("train", "--class_names", "a a b c d"),
    ("train", "--custom_class_weights", "1 2"), ("train", "--custom_class_weights", "0 0 0 0 0"), ("train", "--custom_class_weights", "1 1 1 1 -1"),
    ("train", "--augment_scale", "2 0.5"), ("train", "--augment_scale", "0 1"), ("train", "--augment_scale", "1"), ("train", "--augment_rotation", "181"),
    ("train", "--augment_hue", "0.6"), ("train", "--augment_noise", "-1"), ("train", "--layer_decay", "0"), ("train", "--layer_decay", "1.1"), ("train", "--clip", "0"),
    ("train", "--ema", "1"), ("train", "--label_smoothing", "1"), ("train", "--accumulate", "0"), ("train", "--optimizer", "adam2"), ("train", "--focal_tversky_gamma", "0.9"),
    ("train", "--unfreeze_on_plateau", "15"), ("train", "--unfreeze_on_plateau", "0"), ("train", "--amp_dtype", "bf16"), ("train", "--cache", "gpu"),
    ("train", "--model", "unett"), ("train", "--warmup_epochs", "-1"), ("train", "--normalization", "minmax"), ("train", "--epochs", ""),
    ("single", "--patch_size", "0"), ("single", "--train_ratio", "0.9"), ("single", "--label_channels", "3"), ("single", "--interpolation", "cubic"),
    ("single", "--max_nodata", "1.5"), ("single", "--min_labelled", "-1"), ("single", "--label_burn", "255"), ("single", "--label_burn", "-1"),
    ("single", "--input_nodata", "none"), ("single", "--image_channels", "0"), ("single", "--random_seed", "x"), ("batch", "--edge", "cut"),
    ("visualize", "--split", "val"), ("visualize", "--sample_index", "-1"),
    ("predict", "--overlap", "512"), ("predict", "--overlap", "-1"), ("predict", "--threshold", "1.01"), ("predict", "--background_value", "2"),
    ("predict", "--normalization_percentile", "0"), ("predict", "--normalization_percentile", "101"), ("predict", "--output_nodata", "-1"),
    ("predict", "--output_nodata", "70000"), ("predict", "--batch_size", "0"), ("predict", "--num_classes", "0"),
]
CLASS_OF = {"train": TrainingConfig, "single": ExtractionConfig, "batch": ExtractionConfig, "predict": PredictionConfig}


@pytest.mark.parametrize("script, flag, words", WRONG, ids=" ".join)
def test_a_wrong_value_is_a_setup_error_that_names_the_flag(script, flag, words):
    with pytest.raises(SetupError) as error:
        args = SCRIPTS[script][0]([*SCRIPTS[script][1], flag, *words.split(" ")])
        flags.take(CLASS_OF[script], args)
    assert flag in str(error.value).split(": ")[0]


@pytest.mark.parametrize("script, words", [
    ("train", ["--resume", "--overwrite"]), ("single", ["--resume", "--overwrite"]), ("predict", ["--resume", "--overwrite"]), ("single", ["--image_channels", "3", "--bands", "1"]),
    ("single", ["--label_field", "class", "--label_burn", "1"]), ("train", ["--tversky_alpha", "0", "--tversky_beta", "0"]),
    ("train", ["--augmentation", "none", "--augment_noise", "0.1"]), ("train", ["--no_data_augmentation", "--augmentation", "strong"]),
    ("train", ["--no_data_augmentation", "--augment_hue", "0.1"]), ("train", ["--gradual_unfreeze", "--unfreeze_on_plateau", "3"]),
    ("train", ["--unfreeze_on_plateau", "5", "--patience", "5"]), ("train", ["--label_smoothing", "0.1", "--loss_type", "dice"]),
])
def test_flags_that_contradict_each_other_are_named_both(script, words):
    with pytest.raises(SetupError) as error:
        flags.take(CLASS_OF[script], SCRIPTS[script][0]([*SCRIPTS[script][1], *words]))
    assert all(word in str(error.value) for word in words if word.startswith("--"))


# ---------------------------------------------------------------- the dataclasses, built by hand


@pytest.mark.parametrize("field, value", [
    ("epochs", 0), ("epochs", 2.5), ("epochs", None), ("epochs", "ten"), ("weight_decay", -1), ("focal_gamma", -1), ("tversky_beta", float("nan")), ("seed", -1),
    ("mode", "Multiclass"), ("mode", None), ("loss_type", "xe"), ("patch_size", 0), ("workers", -2), ("use_amp", "no"), ("pretrained", 1),
    ("custom_class_weights", 3), ("subdirectories", None), ("model_name", "resnet"), ("learning_rate", "fast"), ("num_classes", 1000),
])
def test_a_config_built_by_hand_checks_itself(field, value):
    with pytest.raises(SetupError):
        TrainingConfig(**{"model_name": "unet", "dataset_root": "x", field: value})


@pytest.mark.parametrize("given, wanted", [({}, ("basic", True)), ({"augmentation": "strong"}, ("strong", True)), ({"augmentation": "none"}, ("none", False)),
                                           ({"data_augmentation": False}, ("none", False)), ({"data_augmentation": False, "augmentation": "none"}, ("none", False))])
def test_the_two_switches_of_augmentation_agree(given, wanted):
    found = TrainingConfig("unet", "x", **given)
    assert (found.augmentation, found.data_augmentation) == wanted and dc.replace(found) == found


def test_the_encoders_share_of_the_rate_is_a_tenth_when_a_plateau_lets_it_go():
    assert [TrainingConfig("unet", "x", **given).encoder_scale for given in ({}, {"unfreeze_on_plateau": 3}, {"unfreeze_on_plateau": 3, "encoder_lr_scale": 0.5})] == [1, 0.1, 0.5]


def test_what_a_config_keeps_is_plain():
    made = TrainingConfig("unet", Path("patches"), save_dir=Path("out"), epochs=np.int64(3), learning_rate=np.float32(0.5), bands=(1, "NIR"), class_names="auto",
                          custom_class_weights=np.array([1, 2]), num_classes=np.int64(2), workers="auto", warmup_lr=0)
    assert (made.dataset_root, made.save_dir, made.epochs, made.learning_rate, made.bands) == ("patches", "out", 3, 0.5, ["1", "NIR"])
    assert made.class_names is None and made.custom_class_weights == [1.0, 2.0] and made.workers is None
    kinds = {type(part) for value in dc.asdict(made).values() for part in (value if isinstance(value, list) else [value])}
    assert kinds <= {str, int, float, bool, type(None)}
    assert dc.replace(made, epochs=4) == TrainingConfig(**{**dc.asdict(made), "epochs": 4})


def test_configs_do_not_share_their_lists():
    one, other = TrainingConfig("unet", "x"), TrainingConfig("unet", "x")
    one.subdirectories.append("test")
    assert other.subdirectories == ["train", "validation"] == parsed("train")["subdirectories"]


def test_flags_and_dataclass_have_the_same_defaults():
    assert flags.take(TrainingConfig, main_v2.parse(TRAIN)) == TrainingConfig("unet", "patches")
    assert flags.take(PredictionConfig, Predict_large_image_v2.parse(PREDICT)) == PredictionConfig()
    for needed in (SINGLE, BATCH):
        assert flags.take(ExtractionConfig, Patch_extraction_v2.parse(needed)) == ExtractionConfig()


def test_binary_has_one_logit_and_two_classes():
    made = TrainingConfig("unet", "x", mode="binary", num_classes=5, class_names=["no", "yes"])
    assert (made.num_classes, made.class_count) == (1, 2)
    assert TrainingConfig("unet", "x").class_count == 5


@pytest.mark.parametrize("settings, wanted", [
    ({}, "imagenet"), ({"pretrained": False}, None), ({"model_name": "unet-dropout"}, None), ({"init_weights": "a.pth"}, None), ({"encoder_weights": "none"}, None),
    ({"encoder_weights": "w.pth", "pretrained": False}, "w.pth"), ({"encoder_weights": "imagenet", "pretrained": False}, "imagenet"),
])
def test_where_the_encoder_starts(settings, wanted):
    assert TrainingConfig(**{"model_name": "unet", "dataset_root": "x", **settings}).weights_from == wanted
