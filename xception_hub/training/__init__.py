"""The parts that a fine-tuning is made of, each of which stands alone; finetune.py puts them together.

    settings, recipes               what can be asked for, and what each recipe asks for
    settings_checks                 what is refused before any work
    run_data                        the data of a run: read, scanned and split, once
    batches, objective              the order of images, what is done to them, and the loss
    processes, throughput           the processes that work together, their devices and workers, and rates
    run_directory, run_checkpoints  a run's directory, and its checkpoints
    optimization, batch_norm        optimizer and schedule, and statistics
    phase                           what all parts of a run share, and a phase of it
    features, dry_run               what a frozen network computes; what a run would cost
    cross_validation                what the runs of a cross-validation found together
    metrics, report, results        figures, the report, and what is left behind

Labelled photos are read in `xception_hub.data`, networks are built in `xception_hub.models`. Needs the `finetune`
extra; `import xception_hub` does not import it.
"""
