"""Sweeps: every combination once, each a valid configuration with a folder of its own; what cannot be swept is refused in one line."""

from pathlib import Path

import pytest

from eoseg.config import TrainingConfig
from eoseg.errors import SetupError
from eoseg.sweeps import plan


def base(**given):
    return TrainingConfig(**{"model_name": "unet", "dataset_root": "data", "save_dir": "runs", **given})


def test_every_combination_is_run_once_the_last_option_fastest():
    runs = plan(["learning_rate=0.1,0.05", "loss_type=dice,ce"], base(seed=7))
    assert [name for name, _ in runs] == ["learning_rate=0.1,loss_type=dice", "learning_rate=0.1,loss_type=ce",
                                          "learning_rate=0.05,loss_type=dice", "learning_rate=0.05,loss_type=ce"]
    assert [(run.learning_rate, run.loss_type) for _, run in runs] == [(0.1, "dice"), (0.1, "ce"), (0.05, "dice"), (0.05, "ce")]
    assert {run.seed for _, run in runs} == {7} and [Path(run.save_dir) for _, run in runs] == [Path("runs") / name for name, _ in runs]


def test_the_configuration_it_starts_from_stays_as_it_was():
    config = base()
    before = dict(vars(config))
    plan(["batch_size=2,4", "augmentation=none,strong"], config)
    assert vars(config) == before


@pytest.mark.parametrize("word, field, values", [
    ("batch_size=2,16", "batch_size", [2, 16]),
    ("pretrained=true,false", "pretrained", [True, False]),
    ("use_amp=False,True", "use_amp", [False, True]),
    ("model=unet,unet++", "model_name", ["unet", "unet++"]),
    ("model_name=fpn", "model_name", ["fpn"]),
    ("classes=3,4", "num_classes", [3, 4]),
    ("num_classes=3,4", "num_classes", [3, 4]),
    ("workers=auto,0", "workers", [None, 0]),
    ("ema=none,0.999", "ema", [None, 0.999]),
    ("label_nodata=none,0", "label_nodata", ["none", "0"]),
    ("encoder_weights=none,imagenet", "encoder_weights", ["none", "imagenet"]),
    ("dataset_root=/data/a,/data/b", "dataset_root", ["/data/a", "/data/b"]),
    ("mode=binary,multiclass", "mode", ["binary", "multiclass"]),
])
def test_values_have_the_type_of_their_flag(word, field, values):
    assert [getattr(run, field) for _, run in plan([word], base())] == values


def test_folders_are_named_by_what_varies_without_slashes():
    names = [name for name, _ in plan(["model=unet++,fpn", "dataset_root=/a/b c,D:\\e"], base())]
    assert names == ["model=unet++,dataset_root=_a_b_c", "model=unet++,dataset_root=D__e", "model=fpn,dataset_root=_a_b_c", "model=fpn,dataset_root=D__e"]


@pytest.mark.parametrize("start", [{}, {"augmentation": "strong"}, {"data_augmentation": False}])
def test_augmentation_is_swept_whatever_the_run_began_with(start):
    runs = [run for _, run in plan(["augmentation=none,basic,strong"], base(**start))]
    assert [(run.augmentation, run.data_augmentation) for run in runs] == [("none", False), ("basic", True), ("strong", True)]


@pytest.mark.parametrize("start, on", [({}, "basic"), ({"augmentation": "strong"}, "strong"), ({"data_augmentation": False}, "basic")])
def test_augmentation_is_turned_off_and_on(start, on):
    runs = [run for _, run in plan(["data_augmentation=true,false"], base(**start))]
    assert [(run.augmentation, run.data_augmentation) for run in runs] == [(on, True), ("none", False)]


def test_two_classes_are_swept_over_both_modes_from_either():
    for start in ({"mode": "binary"}, {"num_classes": 2}):
        runs = [run for _, run in plan(["mode=binary,multiclass"], base(class_names=["land", "water"], **start))]
        assert [(run.mode, run.num_classes, run.class_count) for run in runs] == [("binary", 1, 2), ("multiclass", 2, 2)]


@pytest.mark.parametrize("words, message", [
    (["lerning_rate=0.1"], r"--sweep lerning_rate=0.1: no option is called 'lerning_rate'; did you mean learning_rate"),
    (["qqq=1"], r"--sweep qqq=1: no option is called 'qqq'; --help lists them"),
    (["learning_rate"], r"--sweep learning_rate: a value is missing; write learning_rate=A,B,C"),
    (["learning_rate="], r"a value is missing"),
    (["learning_rate=0.1,,0.2"], r"a value is missing"),
    (["learning_rate=0.1,0.10"], r"--sweep learning_rate=0.1,0.10: 0.1 is there twice"),
    (["ema=none,None"], r"none is there twice"),
    (["seed=1,2", "seed=3"], r"--sweep seed: is given twice; .* seed=A,B,C"),
    (["model=unet", "model_name=fpn"], r"--sweep model: is given twice"),
    (["save_dir=a,b"], r"save_dir cannot vary"),
    (["resume=true,false"], r"resume cannot vary"),
    (["overwrite=true"], r"overwrite cannot vary"),
    (["bands=1,2,3"], r"--sweep bands=1,2,3: bands is a list, and lists are not supported"),
    (["class_names=a,b"], r"class_names is a list"),
    (["learning_rate=0.1,fast"], r"^--sweep learning_rate=fast: --learning_rate fast: is no float"),
    (["learning_rate=none"], r"^--sweep learning_rate=none: --learning_rate none: is no float"),
    (["learning_rate=0.1,0"], r"^--sweep learning_rate=0: --learning_rate 0.0: must be above 0"),
    (["loss_type=dice,dise"], r"^--sweep loss_type=dise: --loss_type dise: no such choice; it is one of"),
    (["model=unet,unett"], r"^--sweep model=unett: --model unett: no such network; did you mean"),
    (["pretrained=yes,no"], r"^--sweep pretrained=yes: --pretrained yes: is neither True nor False"),
    (["label_smoothing=0,0.1", "loss_type=ce,dice"], r"^--sweep label_smoothing=0.1,loss_type=dice: --label_smoothing 0.1: dice has no cross entropy"),
    (["mode=multiclass,binary", "classes=3,4"], r"^--sweep mode=binary,classes=3: num_classes stays 1, as another option says"),
    (["dataset_root=a/b,a_b"], r"dataset_root=a_b is no name for a folder, too long or that of two runs"),
    ([f"dataset_root={'a' * 250}"], r"is no name for a folder"),
])
def test_what_cannot_be_swept_is_told_with_its_remedy(words, message):
    with pytest.raises(SetupError, match=message) as caught:
        plan(words, base())
    assert "\n" not in str(caught.value)


def test_two_hundred_combinations_are_the_most():
    seeds = lambda count: f"seed={','.join(map(str, range(count)))}"
    assert len(plan([seeds(100), "loss_type=ce,dice"], base())) == 200
    with pytest.raises(SetupError, match=r"--sweep: 202 combinations; at most 200"):
        plan([seeds(101), "loss_type=ce,dice"], base())
