"""Tables as people write them: their labels are what stands there, or a question whose every answer works."""

import re
import shlex
import unicodedata
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets_read import labels_of, load
from small_images import save_pieces

import finetune
from xception_hub.data.labelled import Data
from xception_hub.data.labelled import load as load_settings
from xception_hub.errors import DataError

# Heading, then in each line: rows with ' / ' between them, where 0 to 5 are images; options; the labels of the training
# images (a+b are two, . is none) and the size of the validation split, or ! and what the error names, in order.
CASES = """
# Labels are texts, in whatever form of table
image,label / 0,001 / 1,1 / 2,010 | | 001, 1, 010
\ufeffimage;label / 0;001 / 1;1 / 2;010 | | 001, 1, 010
image\tlabel / 0\t001 / 1\t1 / 2\tx, y | --label-separator "" | 001, 1, x, y
image,label / 0,NA / 1,None / 2,null / 3,nan | | NA, None, null, nan
image,label / 0,true / 1,False / 2,1e5 | | true, False, 1e5
image,label / 0,1.0 / 1,2.0 / 2,1.0 | | 1, 2, 1
filename, cat, dog / 0, 1, 0 / 1, 0, 1 / 2, 1, 1 | | cat, dog, cat+dog
,image,a,b / 0,0,1,0 / 1,1,0,1 | | a, b
Unnamed: 0,image,a,b / 0,0,1,0 / 1,1,0,1 | | a, b
0.png,cat / 1.png,dog / 2.png,cat | | cat, dog, cat
0.png,cat,7 / 1.png,dog,8 | | ! image, column 2, column 3 ... --label-column
0.png,cat,7 / 1.png,dog,8 | --label-column "column 2" | cat, dog
# Which columns
Image,Label / 0,a / 1,b | | a, b
File Name,Class / 0,a / 1,b | | a, b
image-path,TARGET / 0,a / 1,b | | a, b
id_code,diagnosis / 0,a / 1,b | | a, b
photo,kind / 0,a | | ! photo, kind ... --image-column
image,x / 0,a | | ! image, x ... --label-column
image,label,class_name / 0,0,cat / 1,1,dog / 2,1,dog | | 0, 1, 1
image,label,kind,category / 0,0,x,big / 1,1,y,big / 2,1,y,small | | ! --label-column label ... --label-column category
image,label,kind,category / 0,0,x,big / 1,1,y,big / 2,1,y,small | --label-column category | big, big, small
image,label,category / 0,0,a / 1,1,b / 2,1,c / 3,0,a | | ! --label-column label ... --label-column category
image,label,category / 0,0,a / 1,1,b / 2,1,c / 3,0,a | --label-column label | 0, 1, 1, 0
# A column for each class
image,age,a,b / 0,31,1,0 / 1,4,0,1 / 2,5,0,1 / 3,6,1,0 | | a, b, b, a
image,a,b / 0,1.0,0.0 / 1,0.0,1.0 | | a, b
image,a,b / 0,True,no / 1,False,yes | --label-column a,b | a, b
image,a,b / 0,1,-1 / 1,-1,-1 / 2,1,1 / 3,-1,1 | | a, ., a+b, b
image,a,b / 0,1,0 / 1,0,0 / 2,1,1 | --label-column "a, b" | a, ., a+b
image,a,b / 0,1,0 / 1,-1,1 / 2,0,1 | | ! --uncertain yes ... --uncertain no ... --uncertain skip
image,age,a / 0,31,1 / 1,4,0 | --label-column age,a | ! 'age' ... '31' ... row 0
image,defect / 0,1 / 1,0 | | ! image, defect ... --label-column
image,defect / 0,True / 1,False | --label-column defect | True, False
image,a,b / 0,1,0 / 1,0,1 | --label-column a,c | ! 'c' ... image, a, b
Path,A,B / 0,1.0, / 1,-1.0,0.0 / 2,,1.0 / 3,0.0,1.0 | --label-column A,B | ! --blank-label no ... --blank-label skip
Path,A,B / 0,1.0, / 1,-1.0,0.0 / 2,,1.0 / 3,0.0,1.0 | --label-column A,B --blank-label no --uncertain yes | A, A, B, B
Path,A,B / 0,1.0, / 1,-1.0,0.0 / 2,,1.0 / 3,0.0,1.0 | --label-column A,B --blank-label no --uncertain no | A, ., B, B
Path,A,B / 0,1.0, / 1,-1.0,0.0 / 2,,1.0 / 3,0.0,1.0 | --label-column A,B --blank-label no --uncertain skip | A, B, B
Path,A,B / 0,1.0, / 1,-1.0,0.0 / 2,,1.0 / 3,0.0,1.0 | --label-column A,B --blank-label skip --uncertain no | ., B
# Several labels in a cell
image;label / 0;['scab', 'rust'] / 1;['scab'] / 2;[] | | rust+scab, scab, .
image;label / 0;[1, 0, 0] / 1;[0, 1, 0] / 2;[1, 0, 1] | | 0, 1, 0+2
image;label / 0;[1, 0] / 1;[0, 1] / 2;[0, 1] | | 0, 1, 1
image;label / 0;[1, 0] / 1;[1] / 2;[0] | | 0+1, 1, 0
image;label / 0;{"choices": ["cat", "dog"]} / 1;{"choices": ["cat"]} / 2;{"choices": ["dog"]} | | cat+dog, cat, dog
image;label / 0;{"choices": ["cat", "dog"]} / 1;cat / 2;dog | | cat+dog, cat, dog
image;label / 0;a b / 1;a / 2;b | | ! --label-separator " " ... --label-separator ""
image;label / 0;a b / 1;a / 2;b | --label-separator " " | a+b, a, b
image;label / 0;a b / 1;a / 2;b | --label-separator "" | a b, a, b
image;label / 0;a|b / 1;a / 2;b | --label-separator "|" | a+b, a, b
image;label / 0;a,b / 1;a / 2;b | | ! --label-separator "," ... --label-separator ""
image;label / 0;a+b / 1;a / 2;b | | ! --label-separator "+" ... --label-separator ""
image,label / 0,clear primary / 1,clear primary water / 2,cloudy / 3,primary water | | ! --label-separator " "
image,label / 0,clear dry / 1,cloudy / 2,dry wet | --label-separator " " | clear+dry, cloudy, dry+wet
image,label / 0,c#p / 1,d#p / 2,c#w / 3,d#w | --label-separator "#" | c+p, d+p, c+w, d+w
image,label / 0,New York / 1,York / 2,Los Angeles | | New York, York, Los Angeles
image,label / 0,cat / 0,dog / 1,cat / 2,dog / 2,dog | | ! --repeated-images labels ... --repeated-images rows
image,label / 0,cat / 0,dog / 1,cat / 2,dog / 2,dog | --repeated-images labels | cat+dog, cat, dog
image,label / 0,cat / 0,dog / 1,cat / 2,dog / 2,dog | --repeated-images rows | cat, dog, cat, dog, dog
image,label,box / 0,cat,1 / 0,cat,2 / 1,cat,3 / 2,dog,4 | | cat, cat, dog
image,label,box / 0,cat,1 / 0,cat,2 / 1,cat,3 / 2,dog,4 | --repeated-images rows | cat, cat, cat, dog
# Rows without a label
image,label / 0,a / 1, / 2,b | | ! 1 rows ... row 1 ... --unlabelled skip
image,label / 0,a / 1, / 2,b | --unlabelled skip | a, b
image,label / 0,1 / 1, / 2,2 | | ! 1 rows ... row 1
image,label / 0,-1 / 1,1 / 2,1 | | -1, 1, 1
image,label / 0,-1 / 1,a / 2,b | | -1, a, b
# The split in a column
image,label,split / 0,a,train / 1,a,val / 2,b,train / 3,b,val | | a, b; 2 in val
image,label,split / 0,a,TRAIN / 1,a,valid / 2,b,TRAIN / 3,b,valid | | a, b; 2 in valid
image,label,split / 0,a,Training / 1,a,Testing / 2,b,Training | --split-column "" | a, a, b
image,label,data set / 0,a,train / 1,b,train / 2,b,test | | a, b; 1 in test
image,label,phase / 0,a,train / 1,b,train / 2,b,test | | a, b; 1 in test
image,label,kfold / 0,a,train / 1,b,train / 2,b,test | | a, b; 1 in test
image,label,whatever / 0,a,train / 1,b,train / 2,b,test | | ! --split-column whatever ... --split-column ""
image,label,whatever / 0,a,train / 1,b,train / 2,b,test | --split-column whatever | a, b; 1 in test
image,label,whatever / 0,a,train / 1,b,train / 2,b,test | --split-column "" | a, b, b
image,label,fold / 0,a,0 / 1,a,1 / 2,b,0 / 3,b,1 | | ! --split-column fold ... --fold 0 ... --split-column ""
image,label,fold / 0,a,0 / 1,a,1 / 2,b,0 / 3,b,1 | --split-column fold | ! 'train' ... 0, 1
image,label,fold / 0,a,0 / 1,a,1 / 2,b,0 | --split-column fold --train-split 0 --validation-split 1 | a, b; 1 in 1
image,label,fold / 0,a,0 / 1,a,1 / 2,b,0 / 3,b,1 / 4,b,2 | --fold 2 | a, b, a, b; 1 in 2
image,label,fold / 0,a,0 / 1,a,1 / 2,b,0 / 3,b,1 | --fold 7 --split-column fold | ! '7' ... 0, 1
image,label,kfold / 0,a,0 / 1,a,1 / 2,b,0 / 3,b,1 | | ! --split-column kfold
image,label,part / 0,a,x / 1,a,y / 2,b,x | --split-column part --train-split x --validation-split y | a, b; 1 in y
image,label,is_val / 0,a,False / 1,b,True / 2,b,False | | a, b; 1 in validation
image,label,is_test / 0,a,False / 1,b,True / 2,b,False | | a, b; 1 in test
image,label,is_train / 0,a,True / 1,b,False / 2,b,True | | a, b; 1 in validation
fname,labels,is_valid / 0,a,False / 1,b,True / 2,b,False | | ! --split-column is_valid ... --split-column ""
fname,labels,is_valid / 0,a,False / 1,b,True / 2,b,False | --split-column is_valid | a, b; 1 in validation
image,label,valid / 0,a,True / 1,b,False | | a, b
image,label,split / 0,a,train / 1,b,train / 2,b, | | ! none, train ... --split-column split
image,label,split / 0,a,train / 1,b,train / 2,b, | --split-column split | a, b
# Groups
image,label,camera / 0,a,1 / 1,b,1 / 2,b,2 | | ! --group-column camera ... --group-column ""
image,label,camera / 0,a,1 / 1,b,1 / 2,b,2 | --group-column "" | a, b, b
image,label,camera / 0,a,1 / 1,b,1 / 2,b,2 | --group-column camera | a, b, b
image,label,camera / 0,a,1 / 1,b,1 / 2,b,2 | --group-column cam | ! 'cam' ... image, label, camera
# What cannot be trained on
 | | ! empty line
image,label | | ! empty
image,label / a,b,c / " | | ! cannot be read as a table
"""
LINES = [
    [part.strip() for part in re.split(r' \|', line)]
    for line in CASES.strip('\n').splitlines()
    if not line.startswith('#')
]


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    for number, path in enumerate(save_pieces(tmp_path, 6, 16)):
        path.rename(tmp_path / f'{number}.png')


def read(folder: Path, text: str, options: str = '') -> Data:
    """As finetune.py reads it with these options."""
    file = folder / 'table.csv'
    file.write_text('\n'.join(text.split(' / ')), encoding='utf-8')
    words = ['--dataset', str(file), '--output', str(folder / 'model'), *shlex.split(options)]
    return load_settings(finetune.app.parse_args(words)[1].arguments['settings'].data)


@pytest.mark.parametrize(('text', 'options', 'result'), LINES)
def test_tables(text: str, options: str, result: str, tmp_path: Path) -> None:
    if result.startswith('! '):
        with pytest.raises(DataError, match='.*'.join(map(re.escape, result[2:].split(' ... ')))):
            read(tmp_path, text, options)
        return
    data = read(tmp_path, text, options)
    found = ', '.join(labels_of(data))
    assert result == found + (f'; {len(data.validation)} in {data.validation.name}' if data.has_validation else '')


def test_numbers_in_order(tmp_path: Path) -> None:
    """Classes are sorted as numbers if all are; those of columns are in their order, without an image too."""
    assert read(tmp_path, 'image,label / 0,10 / 1,2 / 2,1').class_names == ['1', '2', '10']
    assert read(tmp_path, 'image,label / 0,10 / 1,2 / 2,x').class_names == ['10', '2', 'x']
    data = read(tmp_path, 'image,z,never,a / 0,1,0,0 / 1,0,0,1')
    assert (data.class_names, data.multi_label) == (['z', 'never', 'a'], False)


def test_accents_in_either_form(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, 'Müll') for form in ('NFC', 'NFD')]
    assert read(tmp_path, f'image,label / 0,{forms[0]} / 1,{forms[1]} / 2,b').class_names == [forms[0], 'b']


@pytest.mark.parametrize('encoding', ['utf-16', 'utf-8-sig', 'cp1252'])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    """One that a file does not declare is asked for; the answer works."""
    file, options = tmp_path / 'table.csv', dict[str, Any]()
    file.write_text('image,label\n0,Bär\n1,Hund\n', encoding=encoding)
    if encoding == 'cp1252':
        with pytest.raises(DataError, match='--table-encoding cp1252'):
            load(file)
        with pytest.raises(DataError, match='--table-encoding nothing'):
            load(file, table_encoding='nothing')
        options = dict(table_encoding='cp1252')
    assert labels_of(load(file, **options)) == ['Bär', 'Hund']


@pytest.mark.parametrize('streaming', [False, True])
@pytest.mark.parametrize(
    ('labels', 'expected'),
    [
        ([True, False], ['True', 'False']),
        ([3.0, 12.0], ['3', '12']),
        ([[True, False], [True, True]], ['0', '0+1']),
        ([[1.0, 0.0], [0.0, 1.0]], ['0', '1']),
        ([{'choices': ['a', 'b']}, {'choices': ['b']}], ['a+b', 'b']),
    ],
)
def test_types_of_parquet(labels: list[Any], expected: list[str], streaming: bool, tmp_path: Path) -> None:
    datasets.Dataset.from_dict(dict(image=['0.png', '1.png'], label=labels)).to_parquet(tmp_path / 'table.parquet')
    assert labels_of(load(tmp_path / 'table.parquet', streaming=streaming)) == expected


def test_a_split_column_of_a_stream(tmp_path: Path) -> None:
    rows = dict(image=['0.png', '1.png'], label=['a', 'b'], split=['train', 'train'])
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / 'table.parquet')
    with pytest.raises(DataError, match='--streaming.*--split-column ""'):
        load(tmp_path / 'table.parquet', streaming=True)
    assert len(load(tmp_path / 'table.parquet', streaming=True, split_column='').train) == 2


@pytest.mark.parametrize('name', ['patient_id', 'Patient ID', 'subject', 'lesion_id', 'group'])
def test_groups_are_not_cut(name: str, tmp_path: Path) -> None:
    groups, text = 'aabbcc', f'image,label,{name}'
    text += ''.join(f' / {number},{"xy"[number % 2]},{group}' for number, group in enumerate(groups))
    data = read(tmp_path, text)
    assert any('--group-column ""' in note for note in data.notes)
    for seed in range(10):
        parts = data.with_validation(0.3, seed)
        held = {groups[row] for row in parts.validation.source_rows}
        assert held and not held & {groups[row] for row in parts.train.source_rows}
    ignored = read(tmp_path, text, '--group-column ""')
    assert not len(ignored.train.groups) and '--group-column' not in ' '.join(ignored.notes)
    assert np.unique(data.train.groups).tolist() == [0, 1, 2]


def test_images_without_a_group(tmp_path: Path) -> None:
    """Each is a group of its own, not all of them one."""
    groups = read(tmp_path, 'image,label,patient / 0,a,p / 1,b, / 2,a,p / 3,b,').train.groups
    assert groups[0] == groups[2] and len({*groups.tolist()}) == 3


def test_groups_on_both_sides(tmp_path: Path) -> None:
    """Of the dataset's own split: a warning, and the split that it names has whole groups."""
    text = 'image,label,patient,split / 0,a,p,train / 1,b,q,train / 2,a,p,val / 3,b,r,val'
    with pytest.warns(UserWarning, match=r"1 of the 3 groups by 'patient'.*--validation-split \"\""):
        read(tmp_path, text)
    with pytest.warns(UserWarning, match='2 of the 2 groups'):
        read(tmp_path, text.replace('patient', 'kind').replace(',r,', ',q,'), '--group-column kind')
    assert len(read(tmp_path, text, '--group-column ""').validation) == 2


def test_rows_that_are_left_aside(tmp_path: Path) -> None:
    """The others keep their numbers and files."""
    data = read(tmp_path, 'image,label / 0,a / 1, / 2,b', '--unlabelled skip')
    assert data.train.source_rows.tolist() == [0, 2]
    assert "1 of 3 rows of the split 'train' are left aside: without a label." in data.notes
    assert [cell['path'][-5:] for _, cell in data.train.cells()] == ['0.png', '2.png']
