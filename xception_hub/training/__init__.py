"""The parts that a fine-tuning is made of, each of which stands alone; finetune.py puts them together.

    settings, recipes               all settings, and the values that each recipe sets
    settings_checks                 refusals of settings before any work
    run_data                        the data of a run: read, scanned and split, once
    batches, objective              the order of images, what is done to them, and the loss
    processes, throughput           the processes that work together, their devices and workers, and rates
    run_directory, run_checkpoints  a run's directory, and its checkpoints
    optimization, batch_norm        optimizer and schedule, and statistics
    phase                           objects that all parts of a run share, and a phase of it
    features, dry_run               features of a frozen network; the cost of a run
    cross_validation                mean figures over the folds of a cross-validation
    metrics, report, results        figures, the report, and the files of a finished run

Labelled photos are read in `xception_hub.data`, networks are built in `xception_hub.models`. Needs the `finetune`
extra; `import xception_hub` does not import it.
"""
