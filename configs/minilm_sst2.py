"""What a file of configs/minilm.py is worth to a linear probe: SST-2, by ten probes of the uncompressed network's embeddings.

bqjax compress --config configs/minilm.py --data DATA --out out/minilm.bq.safetensors
bqjax compare --config configs/minilm_sst2.py --data DATA --out out/minilm_sst2
"""

from bqjax.experiment import Experiment
from train.methods import SavedFile
from train.tasks import sst2_task

config = Experiment(
    task=lambda data_dir, progress: sst2_task(data_dir),
    data="text/ and minilm/ (see train/tasks/sentences.py)",
    methods=(SavedFile(path="out/minilm.bq.safetensors", label="the file of configs/minilm.py"),),
)
