"""The parts that a fine-tuning is made of, each of which stands alone; finetune.py puts them together.

    settings, recipes              what can be asked for, and what each recipe asks for
    images, data, scan             image files, datasets of them, and what is wrong with them
    samples, objective             the order of images, what is done to them, and the loss
    throughput, machine            rates; the processes, devices, workers and progress of the machine
    runs, resume                   a run's directory, and its checkpoints
    manifest                       what a run finds in its data, once
    models, labels, metrics        networks, which of their outputs are which classes, and figures
    optimization, memory           optimizer and schedule, and what a step keeps in memory
    task                           the one object that all parts of a run share
    features, dry_run              what a frozen network computes; what a run would cost
    report, results                what is said and left behind

Needs the `finetune` extra; `import xception_hub` does not import it.
"""
