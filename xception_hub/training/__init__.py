"""The parts that a fine-tuning is made of, each of which stands alone; finetune.py puts them together.

    settings, recipes            what can be asked for, and what each recipe asks for
    images, data, scan           image files, datasets of them, and what is wrong with them
    samples, objective           the order of images, what is done to them, and the loss
    models, features, labels     networks, what frozen ones compute, and which outputs are which classes
    loop, evaluation, metrics    training, and judging
    runs, resume                 a run's directory, and its checkpoints
    throughput, memory                 what a step costs
    results, report              what is said and left behind

Needs the `finetune` extra; `import xception_hub` doesn't import it.
"""
