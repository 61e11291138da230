"""Names of the outputs of a timm model."""

from timm.data import ImageNetInfo

from ..directory.write import label_names_of
from .build import TimmModel

IMAGENET_CLASSES = 1000


def names_of(model: TimmModel) -> list[str]:
    """Returns a name for each output of a model: its own, the name of the ImageNet class, or the number."""
    spellings = spellings_of(model)
    if not spellings:
        return [str(number) for number in range(model.num_classes)]
    names = [names[0] for names in spellings[-1]]
    return [
        name if names.count(name) == 1 else f'{name} ({spellings[0][output][0]})' for output, name in enumerate(names)
    ]


def spellings_of(model: TimmModel) -> list[list[list[str]]]:
    """Returns the names of all outputs in each spelling, the most specific first; empty if they are unknown."""
    names = label_names_of(model.pretrained_cfg)
    descriptions = model.pretrained_cfg.get('label_descriptions') or {}
    if len(names) != model.num_classes:
        if model.num_classes != IMAGENET_CLASSES:
            return []
        names = ImageNetInfo().label_names()
        descriptions = ImageNetInfo().label_descriptions(as_dict=True)
    if not descriptions:
        return [[[name] for name in names]]
    lemmas = [descriptions.get(name, name).split(', ') for name in names]
    return [
        [[name] for name in names],
        [[', '.join(words)] for words in lemmas],
        [words[:1] for words in lemmas],
        lemmas,
    ]
