"""The parts that a fine-tuning is made of, each of which stands alone; finetune.py puts them together.

    settings, recipes              what can be asked for, and what each recipe asks for
    split_names, tables, columns   what names of splits, cells and columns of tables mean
    folders, reading               what folders mean, and any dataset as tables
    image_paths, classes           from columns to image files, and to numbers of classes
    stratified, data, scan         a held-out share; the data of a run; what is wrong with its images
    samples, objective             the order of images, what is done to them, and the loss
    throughput, machine            rates; the processes, devices, workers and progress of the machine
    runs, resume                   a run's directory, and its checkpoints
    manifest                       what a run finds in its data, once
    models, labels, metrics        networks, which of their outputs are which classes, and figures
    optimization, memory           optimizer and schedule, and what a step keeps in memory
    task                           the one object that all parts of a run share
    features, dry_run              what a frozen network computes; what a run would cost
    predict                        the command that classifies the images of folders, tables and datasets
    report, results                what is said and left behind

Needs the `finetune` extra; `import xception_hub` does not import it.
"""
