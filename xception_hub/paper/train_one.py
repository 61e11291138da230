"""python -m xception_hub.paper.train_one --config SETTINGS

`xception-hub finetune` in a process that knows the networks that only the paper needs.
"""

import runpy
import sys

if __name__ == '__main__':
    sys.argv[1:1] = ['finetune']
    runpy.run_module('xception_hub', run_name='__main__', alter_sys=True)
