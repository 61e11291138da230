"""finetune.py as its users run it: real images, real processes, good and bad input."""

import csv
import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from finetuning import SMALL, Running, finetune, run
from forked import run_code
from handwritten_digits import NAMES, handwritten_digits
from hub_server import TOKEN, HubServer
from kitchen_photos import PHOTOS, kitchen_photos
from torch import Tensor, nn

import xception_hub
from xception_hub.errors import SettingsError
from xception_hub.inference import predict
from xception_hub.training.results import push, usage
from xception_hub.training.run_checkpoints import read
from xception_hub.training.settings import with_recipe

TRAINING = ('--recipe', 'full', '--warmup-epochs', 0, '--batch-size', 16)
FEW = (*TRAINING, '--epochs', 2)


@pytest.fixture(scope='module')
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photos in a folder for each class."""
    folder = tmp_path_factory.mktemp('photos') / 'kitchen'
    kitchen_photos(folder)
    return folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handwritten_digits(tmp_path_factory.mktemp('data') / 'digits', per_class=10, classes=6)


@pytest.fixture(scope='module')
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is finished."""
    output = tmp_path_factory.mktemp('trained') / 'model'
    finetune(*SMALL, *FEW, '--dataset', folder, '--output', output, log=output.with_name('log'))
    return output


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / 'log'


def figures_of(output: Path) -> dict[str, Any]:
    return json.loads((output / 'metrics.json').read_text())


def predictions_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / 'predictions.csv', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def weights_file(output: Path) -> bytes:
    return (output / 'model.safetensors').read_bytes()


def weights_of(output: Path) -> dict[str, Tensor]:
    return safetensors.torch.load_file(output / 'model.safetensors')


def test_probe_of_photos(
    hub: HubServer, kitchen: Path, genuine_state_dict: dict[str, Tensor], tmp_path: Path, log: Path
) -> None:
    """Nine photos teach the genuine frozen backbone what is on eight of the other nine; the code of the report runs."""
    arguments = (
        f'--recipe probe --dataset {kitchen} --image-size 110 --validation-share 0.5',
        f'--feature-cache {tmp_path / "features"}',
    )
    output = tmp_path / 'model'
    text = finetune(*arguments, '--output', output, log=log)
    figures = figures_of(output)
    assert figures['top1'] >= 8 / 9
    assert (figures['num_samples'], figures['bad_images']) == (9, 0)
    assert 'Features of train: network' in text

    tensors = weights_of(output)
    assert all(tensors[name].equal(tensor) for name, tensor in genuine_state_dict.items())
    config = json.loads((output / 'config.json').read_text())
    assert config['pretrained_cfg']['label_names'] == sorted(PHOTOS)
    assert config['base_model'] == 'smp-hub/xception.imagenet'
    assert config['pretrained_cfg']['input_size'] == [3, 110, 110]
    assert '234 of 234 tensors bit-identical' in (output / 'README.md').read_text()

    page, code = html.unescape((output / 'report.html').read_text()), usage(f'local-dir:{output}')
    assert code in page and 'Confusion' in page
    shutil.copy(kitchen / 'plate' / '0385.jpg', tmp_path / 'photo.jpg')
    assert run_code(code, tmp_path, tmp_path / 'printed') == (0, 'plate\n')


def test_transfer_keeps_statistics(folder: Path, trained: Path, tmp_path: Path, log: Path) -> None:
    """Weights move in the second of the two phases, moving statistics don't by a bit."""
    output = tmp_path / 'model'
    finetune(
        f'--model {trained} --recipe transfer --dataset {folder} --epochs 1 --head-epochs 2',
        f'--output {output} --feature-cache {tmp_path / "features"}',
        log=log,
    )
    before = weights_of(trained)
    tensors = read(output / 'checkpoints' / '01-000000002.safetensors').tensors['model']
    kept = {name for name in before if tensors[name].equal(before[name])}
    assert kept == {name for name in before if 'running' in name or 'num_batches' in name}


@pytest.mark.slow
def test_digits_reach(tmp_path: Path, log: Path) -> None:
    """A small network learns handwritten digits from scratch, with everything that the recipe full has."""
    data = handwritten_digits(tmp_path / 'digits', per_class=60)
    finetune(
        *SMALL,
        f'--recipe full --dataset {data} --epochs 12 --warmup-epochs 1 --batch-size 16',
        '--learning-rate 3e-3 --layer-decay 1.0 --flip 0 --ema-decay 0.98 --crop-scale 0.7 1.0',
        f'--output {tmp_path / "model"}',
        log=log,
    )
    assert figures_of(tmp_path / 'model')['top1'] >= 0.85


def test_two_processes_are_one(folder: Path, tmp_path: Path, log: Path) -> None:
    """Half the batch each, accumulated, a short last group: the same weights and figures."""
    arguments = (
        *SMALL,
        f'--recipe full --dataset {folder} --epochs 2 --warmup-epochs 0 --batch-norm frozen --mixup 0 --drop-rate 0',
        '--drop-path-rate 0 --optimizer sgd --learning-rate 0.3 --layer-decay 1 --random-erasing 0.5 --output',
    )
    finetune(*arguments, tmp_path / 'one', '--batch-size 20 --accumulation 1', log=log)
    text = finetune(
        *arguments, tmp_path / 'two', '--batch-size 5 --accumulation 2', log=tmp_path / 'log 2', processes=2
    )
    one, two = weights_of(tmp_path / 'one'), weights_of(tmp_path / 'two')
    moved = timm.create_model('test_resnet', num_classes=6).state_dict()
    assert max(float((one[name] - moved[name]).abs().max()) for name in one if 'weight' in name) > 1e-3
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=1e-4, atol=1e-6), name
    assert figures_of(tmp_path / 'one')['num_samples'] == figures_of(tmp_path / 'two')['num_samples'] == 12
    losses = [figures_of(tmp_path / name)['loss'] for name in ('one', 'two')]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert text.count('6 classes, 48 images for training, 12 for validation') == 1


def test_multi_label(folder: Path, tmp_path: Path, log: Path) -> None:
    """Lists of labels in a table; an image may have none."""
    rows = []
    for number, word in enumerate(NAMES[:4]):
        for path in sorted((folder / word).iterdir()):
            labels = [word, *(['even'] if number % 2 == 0 else [])] if path.stem != '000' else []
            rows.append(dict(image=str(path), labels=labels))
    table = tmp_path / 'table.jsonl'
    table.write_text('\n'.join(map(json.dumps, rows)))
    finetune(
        *SMALL,
        *FEW,
        f'--dataset {table} --metric mean_average_precision --class-weights --cutmix 1',
        f'--balanced-sampling --output {tmp_path / "model"}',
        log=log,
    )
    figures = figures_of(tmp_path / 'model')
    assert {'top1', 'macro_f1', 'micro_f1', 'mean_average_precision', 'map_at_100', 'num_samples'} < figures.keys()
    config = json.loads((tmp_path / 'model' / 'config.json').read_text())
    assert config['problem_type'] == 'multi_label_classification'
    assert config['pretrained_cfg']['label_names'] == ['even', 'one', 'three', 'two', 'zero']


def test_arguments_of_the_model(folder: Path, tmp_path: Path, log: Path) -> None:
    """Numbers, switches, lists and names reach the network as what they are; a variant's directory is whole."""
    given: dict[str, Any] = dict(width_multiplier=0.1875, min_img_size=32, residual=False, fc_widths=[8, 4])
    given |= dict(segments=2, bn_eps=1e-5)
    arguments = [part for name, value in given.items() for part in (f'--model-args.{name}', value)]
    finetune(
        '--model xception_paper_mid_elu --no-pretrained --image-size 32',
        *arguments,
        f'--recipe paper-imagenet --epochs 1 --dataset {folder} --output {tmp_path / "model"} --max-train-samples 8',
        log=log,
    )
    assert given.items() <= json.loads((tmp_path / 'model' / 'config.json').read_text())['model_args'].items()
    card = (tmp_path / 'model' / 'README.md').read_text()
    assert all(f'{name}={value!r}' in card for name, value in given.items())
    assert card.count('xception_paper_mid_elu') == 2
    model = timm.create_model(f'local-dir:{tmp_path / "model"}', pretrained=True)
    assert (model.head_hidden_size, model.exit_flow[0].shortcut) == (4, None)
    assert isinstance(model.stem.act1, nn.ReLU) and isinstance(model.middle_flow[0].stack.conv1.act, nn.ELU)


@pytest.mark.parametrize(
    'arguments',
    [
        '--recipe paper-jft --epochs 1 --batch-size 16',
        '--recipe full --warmup-epochs 0 --batch-size 16 --epochs 2 --mixed-precision bf16 --gradient-checkpointing '
        '--no-channels-last --early-stopping 1 --class-weights --balanced-sampling --schedule step',
    ],
    ids=['paper-jft', 'others'],
)
def test_settings(arguments: str, folder: Path, tmp_path: Path, log: Path) -> None:
    finetune(*SMALL, arguments, f'--dataset {folder} --output {tmp_path / "model"} --max-train-samples 20', log=log)
    assert 0 <= figures_of(tmp_path / 'model')['top1'] <= 1


@pytest.mark.slow
def test_compile(folder: Path, tmp_path: Path, log: Path) -> None:
    """The same training, compiled; names of tensors are those of the model."""
    running = Running(
        (*SMALL, *TRAINING, '--epochs', 1, '--compile', '--dataset', folder, '--output', tmp_path / 'model'), log
    )
    ended = running.wait(timeout=300)  # g++ has some thirty kernels to compile
    assert ended.status == 0, ended.text
    assert weights_of(tmp_path / 'model').keys() == timm.create_model('test_resnet').state_dict().keys()


def test_stream(folder: Path, tmp_path: Path, log: Path) -> None:
    """Images of a table, one after the other; all of them are seen."""
    rows = ['image,label', *(f'{path},{path.parent.name}' for path in sorted(folder.rglob('*.png')))]
    (tmp_path / 'table.csv').write_text('\n'.join(rows))
    text = finetune(
        *SMALL, *FEW, '--dataset', tmp_path / 'table.csv', '--streaming', '--output', tmp_path / 'model', log=log
    )
    assert '6 classes, 48 images for training, 12 for validation' in text
    assert figures_of(tmp_path / 'model')['num_samples'] == 12


def test_evaluation(folder: Path, trained: Path, tmp_path: Path, log: Path) -> None:
    """By the names of the classes, whatever their order; one process, two and `predict` find the same."""
    table = tmp_path / 'table.csv'
    rows = [f'{path},{"0" if word == "zero" else word}' for word in NAMES[:6] for path in (folder / word).iterdir()]
    table.write_text('\n'.join(['image,label', *rows[10:33]]))  # no zeros, 23 images
    given = ('--eval-only --model', trained, '--dataset', table, '--output')
    found, predicted = [], []
    for processes in (1, 2):
        output = tmp_path / f'evaluation-{processes}'
        finetune(*given, output, log=tmp_path / f'log {processes}', processes=processes)
        assert not (output / 'model.safetensors').exists()
        found.append(figures_of(output))
        predicted.append(predictions_in(output))
    assert found[0]['num_samples'] == found[1]['num_samples'] == 23
    assert found[0]['top1'] == found[1]['top1']
    assert found[0]['loss'] == pytest.approx(found[1]['loss'], rel=1e-5)
    predict.main(str(table), model=str(trained), output=tmp_path / 'predictions.csv', device='cpu')
    predicted.append(predictions_in(tmp_path))
    for same in zip(*predicted):
        assert len({(row['file'], row['label'], row['probability'][:6], row['error']) for row in same}) == 1
    right = [row['label'] == row['target'] == Path(row['file']).parent.name for row in predicted[0]]
    assert sum(right) == pytest.approx(23 * found[0]['top1'])


@pytest.mark.parametrize(('part', 'more'), [(['one'], ()), (['two', 'one'], ('--restrict-classes',))])
def test_evaluation_on_a_part_of_the_classes(
    part: list[str], more: tuple[str, ...], folder: Path, trained: Path, tmp_path: Path, log: Path
) -> None:
    """By default all outputs of the model count, and the report names which. One class will do."""
    model = timm.create_model(f'local-dir:{trained}', pretrained=True).eval()
    names = model.pretrained_cfg['label_names']
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    rows = [f'{path},{word}' for word in part for path in sorted((folder / word).iterdir())]
    (tmp_path / 'table.csv').write_text('\n'.join(['image,label', *rows]))
    output = tmp_path / 'evaluation'
    finetune('--eval-only --model', trained, '--dataset', tmp_path / 'table.csv', *more, '--output', output, log=log)
    with torch.no_grad():
        logits = model(torch.stack([transform(xception_hub.open_image(row.partition(',')[0])) for row in rows]))
    if more:
        logits[:, [name not in part for name in names]] = -torch.inf
    right = [names[number] == row.partition(',')[2] for number, row in zip(logits.argmax(1), rows)]
    assert figures_of(output)['top1'] == pytest.approx(sum(right) / len(right))
    assert figures_of(output)['num_classes'] == (2 if more else 6)
    expected = 'those of the dataset' if more else 'all of the model&#39;s outputs'
    report = (output / 'report.html').read_text()
    assert expected in report and report.count('alt="heat map of') == min(24, len(right) - sum(right))


@pytest.mark.slow
def test_evaluation_of_imagenet(hub: HubServer, kitchen: Path, tmp_path: Path, log: Path) -> None:
    """The 1000 classes by their WordNet ids, in folders of which there are only some."""
    data = tmp_path / 'imagenet'
    for wordnet_id, name in (('n03063599', 'cup'), ('n04597913', 'cutlery'), ('n03908618', 'plate')):
        shutil.copytree(kitchen / name, data / 'val' / wordnet_id)
    finetune('--eval-only', '--dataset', data, '--image-size', 96, '--output', tmp_path / 'evaluation', log=log)
    assert figures_of(tmp_path / 'evaluation')['num_samples'] == 18


def test_bad_images(folder: Path, trained: Path, tmp_path: Path, log: Path) -> None:
    """Every one is named with its reason before anything is trained; skipped only on request, never replaced."""
    data = tmp_path / 'digits'
    shutil.copytree(folder, data)
    whole = (data / 'one' / '001.png').read_bytes()
    (data / 'one' / '001.png').write_bytes(whole[: len(whole) // 2])
    (data / 'two' / 'notes.jpg').write_text('no image')
    command = (*SMALL, *FEW, '--dataset', data, '--output')
    ended = run(*command, tmp_path / 'model', log=log)
    assert ended.status == 1
    for name in ('one/001.png: damaged', 'two/notes.jpg: no image of a known format'):
        assert f'Bad image: {data}/{name}' in ended.text
    assert '2 images cannot be used' in ended.text
    assert not (tmp_path / 'model').exists()
    output = tmp_path / 'evaluation'
    evaluation = ('--eval-only', '--model', trained, '--dataset', data, '--output', output)
    finetune(*evaluation, '--bad-images', 'skip', log=tmp_path / 'evaluation log')
    assert figures_of(output)['bad_images'] == 2 and 'notes.jpg' in (output / 'report.html').read_text()
    rows = predictions_in(output)
    assert [(row['error'][:8], row['label']) for row in rows if row['error']] == [('damaged:', ''), ('no image', '')]
    ended = run(*command, tmp_path / 'unscanned', '--no-scan --workers 1', log=tmp_path / 'unscanned log')
    assert ended.status == 1
    assert re.search(r'error: \S+/(one/001.png: damaged|two/notes.jpg: no image)', ended.text)
    assert 'Traceback' not in ended.text


def test_divergence(folder: Path, tmp_path: Path, log: Path) -> None:
    ended = run(
        *SMALL,
        *TRAINING,
        f'--epochs 30 --optimizer sgd --learning-rate 1e20 --clip-grad 1e30 --dataset {folder}',
        f'--output {tmp_path / "model"}',
        log=log,
    )
    assert ended.status == 1
    assert 'has diverged' in ended.text and 'smaller --learning-rate than 1e+20' in ended.text
    for path in (tmp_path / 'model' / 'checkpoints').iterdir():
        assert all(tensor.isfinite().all() for tensor in safetensors.torch.load_file(path).values()), path


def test_bad_input(folder: Path, tmp_path: Path, log: Path) -> None:
    """One error, and nothing is written."""
    ended = run(*SMALL, *FEW, f'--dataset {folder} --model-args.depth 7 --output {tmp_path / "model"}', log=log)
    assert ended.status == 1 and 'Traceback' not in ended.text
    assert "unexpected keyword argument 'depth'" in ended.text
    assert not (tmp_path / 'model').exists()


def test_finished(hub: HubServer, folder: Path, trained: Path, tmp_path: Path, log: Path) -> None:
    """A finished run prints its figures again, also without its data."""
    for data in (folder, tmp_path / 'moved'):
        text = finetune(*SMALL, *FEW, '--dataset', data, '--output', trained, log=log)
        assert f'{trained} is finished' in text and 'macro_f1 ' in text
        assert ('have changed since then is unknown' in text) == (data != folder)


def test_dry_run(folder: Path, tmp_path: Path, log: Path) -> None:
    text = finetune(*SMALL, *FEW, '--dataset', folder, '--dry-run', '--output', tmp_path / 'model', log=log)
    assert re.search(r'One batch of 16: network [\d.]+ images/s, .*minutes for one pass', text)
    assert re.search(r'^learning_rate +0.0005$', text, re.MULTILINE)
    assert not (tmp_path / 'model').exists()


def test_settings_can_be_fed_back(folder: Path, trained: Path, tmp_path: Path, log: Path) -> None:
    """The resolved settings ask for the same run; what is given beside them replaces them."""
    settings = yaml.safe_load((trained / 'settings.yaml').read_text())
    assert (settings['recipe'], settings['epochs'], settings['layer_decay']) == ('full', 2, 0.75)
    finetune('--config', trained / 'settings.yaml', '--output', tmp_path / 'same', log=log)
    assert weights_file(tmp_path / 'same') == weights_file(trained)
    (tmp_path / 'bad.yaml').write_text('epoks: 3')
    ended = run('--config', tmp_path / 'bad.yaml', '--dataset', folder, log=tmp_path / 'bad log')
    assert ended.status == 2
    assert 'epoks' in ended.text


@pytest.mark.needs('tensorboard')
def test_tracker(folder: Path, tmp_path: Path, log: Path) -> None:
    """TensorBoard's own reader finds the figures of each epoch."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune(*SMALL, *FEW, '--tracker', 'tensorboard', '--dataset', folder, '--output', tmp_path / 'model', log=log)
    events = EventAccumulator(str(next((tmp_path / 'model').rglob('events.out.*')).parent))
    events.Reload()
    assert [event.step for event in events.Scalars('top1')] == [1, 2]


def test_push(hub: HubServer, folder: Path, tmp_path: Path, log: Path) -> None:
    """The Hub then has what the directory has: the model comes back by timm, with its class names."""
    arguments = (
        '--recipe probe --no-pretrained --model-args.width_multiplier 0.1875 --model-args.min_img_size 32',
        f'--image-size 32 --epochs 2 --dataset {folder}',
        f'--feature-cache {tmp_path / "features"} --output {tmp_path / "model"} --push org/digits',
    )
    ended = run(*arguments, log=log)
    assert ended.status == 1
    assert 'There is no token' in ended.text
    finetune(*arguments, log=log, environment=dict(HF_TOKEN=TOKEN))  # finished: only published
    model = timm.create_model('hf-hub:org/digits', pretrained=True)
    assert model.pretrained_cfg['label_names'] == sorted(NAMES[:6])
    assert model.get_classifier().weight.equal(weights_of(tmp_path / 'model')['head.fc.weight'])


@pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")  # of the Hub's client
def test_push_of_another_network(hub: HubServer, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With timm's own card."""
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    push('org/resnet', trained)
    model = timm.create_model('hf-hub:org/resnet', pretrained=True)
    assert model.pretrained_cfg['label_names'] == sorted(NAMES[:6])
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in weights_of(trained).items())


@pytest.mark.slow
def test_going_on(folder: Path, tmp_path: Path, log: Path) -> None:
    """More epochs, new photos, a new class: a finished run is not touched, and the command that it names works."""
    data, model = tmp_path / 'digits', tmp_path / 'model'
    shutil.copytree(folder, data)
    command = ('--image-size', 32, *TRAINING, '--dataset', data)
    first = ('--model', 'test_resnet', '--no-pretrained', '--output', model)
    finetune(*command, '--epochs', 2, *first, log=log)
    for number, change in enumerate(('epochs', 'photos', 'class')):
        epochs = ('--epochs', 3 if change == 'epochs' else 2)
        if change == 'photos':
            (data / 'one' / '001.png').rename(data / 'one' / 'new.png')
        if change == 'class':
            shutil.copytree(data / 'two', data / 'a new one')
        ended = run(*command, *epochs, *first, log=tmp_path / f'refused {number}')
        assert ended.status == 1
        start = re.search(r'further, pass (--model) (local-dir:\S+?)(?:\.\n| and)', ended.text)
        assert start is not None, ended.text
        text = finetune(
            *command, *epochs, *start.groups(), '--output', tmp_path / change, log=tmp_path / f'log {number}'
        )
        assert ('keeps its weights for 6 known classes' in text) == (change == 'class')
    config = json.loads((tmp_path / 'class' / 'config.json').read_text())
    assert config['pretrained_cfg']['label_names'] == sorted([*NAMES[:6], 'a new one'])


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ((), '--dataset is required: a folder of photos, a table, or a name on the Hub'),
        (('photos',), '(--dataset photos)'),
        (('--recipe', 'probe'), '--dataset is required'),
        (('--dataset', 'photos', '--config', 'nowhere.yaml'), 'nowhere.yaml cannot be read'),
    ],
)
def test_first_minute(arguments: tuple[str, ...], said: str) -> None:
    """What people type first leads to the option that they mean."""
    with pytest.raises(SettingsError) as ended:
        with_recipe(arguments, Path('nowhere.yaml') if '--config' in arguments else None)
    assert said in str(ended.value)
