#!/usr/bin/env python
"""Train a network on patches, cross-validate it, evaluate it, or compare runs.

    python main_v2.py --mode multiclass --model unet --dataset_root patches --classes 4 --save_dir trained_models
    python main_v2.py --mode binary --model fpn --dataset_root patches --val_strategy kfold --n_splits 5
    python main_v2.py --model unet --dataset_root patches --classes 4 --sweep learning_rate=0.001,0.0005 encoder_name=resnet18,resnet34
    python main_v2.py --evaluate trained_models/unet_final.pth --split test
    python main_v2.py --compare trained_models/*

--dataset_root is the --output folder of Patch_extraction_v2.py. --save_dir gets the checkpoints
(<model>_final.pth is the one to predict with), the log and the plots.
"""

import dataclasses as dc
import sys

from eoseg import config, errors, flags

JOBS = ("--evaluate", "--compare")  # that need no --model


def main(argv=None):
    parser = build_parser(sys.argv[1:] if argv is None else argv)
    args, given = parser.parse_args(argv), parser.given(argv)
    refuse_together(given)
    if args.compare:
        from eoseg import comparing

        comparing.compare(args.compare, given.get("save_dir", "."), args.overwrite)
    elif args.evaluate:
        with errors.at_once():
            from eoseg import evaluating

        evaluating.evaluate(args.evaluate, args.split, given)
    else:
        train(flags.take(config.TrainingConfig, args), args.sweep)


def train(options, sweep):
    """One run, one cross-validation, or one of them for each combination of a sweep."""
    from eoseg import comparing, runfolder, sweeps

    runs = sweeps.plan(sweep, options) if sweep else [(None, options)]
    with errors.at_once():
        import model_training_v2  # torch takes seconds to import: --help and typos need not wait

    for _, one in runs if sweep else ():
        runfolder.check_folder(one)
    if sweep:
        comparing.check_folder(options.save_dir, options.overwrite or options.resume)
    failed = []
    for i, (name, one) in enumerate(runs, 1):
        job = model_training_v2.cross_validate if one.val_strategy == "kfold" else model_training_v2.train
        if not sweep:
            return job(one)
        print(f"\nrun {i} of {len(runs)}: {name}")
        try:
            job(one)
        except (errors.SetupError, MemoryError, RuntimeError) as error:
            if errors.describe(error) is None:
                raise
            failed.append(name)
            print(f"{name}: {errors.describe(error)}", file=sys.stderr)
    conclude(runs, failed, options.save_dir)


def conclude(runs, failed, folder):
    """Compare the runs of a sweep.

    Raises:
        PartialFailure: some failed; SetupError: all did.
    """
    from eoseg import comparing

    told = f"--sweep: {len(failed)} of {len(runs)} runs failed ({errors.listing(failed, 5)}), as said above"
    if len(failed) == len(runs):
        raise errors.SetupError(f"{told}; mend the cause and run again.")
    comparing.compare([one.save_dir for name, one in runs if name not in failed], folder, overwrite=True)
    if failed:
        raise errors.PartialFailure(f"{told}; with the cause mended, --resume makes up for them.")


def refuse_together(given):
    """Jobs that exclude one another, and flags that belong to another job."""
    jobs = [f"--{name}" for name in ("evaluate", "compare", "sweep") if name in given]
    if len(jobs) > 1:
        raise errors.SetupError(f"{' and '.join(jobs)}: are jobs of their own; give one of them.")
    for name in ("split", "threshold", "temperature"):
        if name in given and "evaluate" not in given:
            raise errors.SetupError(f"--{name}: is for --evaluate; leave it out.")
    beyond = given.keys() - {"compare", "save_dir", "overwrite", "debug"} if "compare" in given else ()
    if beyond:
        named = {f.name: flags.flag_of(f) for f in dc.fields(config.TrainingConfig)}
        raise errors.SetupError(f"{min(named.get(name, f'--{name}') for name in beyond)}: has no say in --compare; leave it out.")


def build_parser(words):
    """The parser for a command line of these words: some jobs need no --model and --dataset_root."""
    parser = flags.Parser(description=__doc__, usage="main_v2.py --model NAME --dataset_root DIR [options]")
    flags.add_options(parser, config.TrainingConfig)
    group = parser.add_argument_group("other jobs")
    group.add_argument("--sweep", nargs="+", action="extend", metavar="NAME=A,B", help="one run for every value, or combination of values, each in a folder of its own, then compared")
    group.add_argument("--evaluate", nargs="+", action="extend", metavar="CKPT", help="score a checkpoint, or the mean of several, on --split; with --calibrate it is fitted to validation first")
    group.add_argument("--split", default="test", metavar="NAME", help="folder of the dataset root that is evaluated (default: test)")
    flags.add_options(parser, config.PredictionConfig, only=("threshold", "temperature"), group=group)
    group.add_argument("--compare", nargs="+", action="extend", metavar="RUN", help="put runs side by side: folders, or globs of them; comparison.csv and .png go to --save_dir (default: here)")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if any(word.split("=")[0] in JOBS for word in map(str, words)):
        for action in parser._actions:
            action.required = False
    return parser


def parse(argv):
    return build_parser(argv).parse_args(argv)


if __name__ == "__main__":
    errors.run(main)
