#!/usr/bin/env python
"""Train a network on patches, or cross-validate it.

    python main_v2.py --mode multiclass --model unet --dataset_root patches --classes 4 --save_dir trained_models
    python main_v2.py --mode binary --model fpn --dataset_root patches --val_strategy kfold --n_splits 5

--dataset_root is the --output folder of Patch_extraction_v2.py. --save_dir gets the checkpoints
(<model>_final.pth is the one to predict with), the log and the plots.
"""

from eoseg import config, errors, flags


def main(argv=None):
    args = parse(argv)
    options = flags.take(config.TrainingConfig, args)
    with errors.at_once():
        import model_training_v2  # torch takes seconds to import: --help and typos need not wait

    if options.val_strategy == "kfold":
        model_training_v2.cross_validate(options)
    else:
        model_training_v2.train(options)


def parse(argv):
    parser = flags.Parser(description=__doc__, usage="main_v2.py --model NAME --dataset_root DIR [options]")
    flags.add_options(parser, config.TrainingConfig)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(argv)


if __name__ == "__main__":
    errors.run(main)
