"""Train the toy network of appendix A with several processes that torchrun starts.

Examples:
    torchrun --nproc_per_node=2 DDP-script-torchrun.py
    OMP_NUM_THREADS=1 torchrun --nproc_per_node=4 DDP-script-torchrun.py --epochs 10
    python DDP-script-torchrun.py               # without torchrun: one process

What each process does is `main` in llms_from_scratch/appendix_a.py, explained in code-part2.ipynb.
"""

import os

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch
from torch.distributed.elastic.multiprocessing.errors import record

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.appendix_a import check_share, main
from llms_from_scratch.training.distributed import check_save, training_options


@record  # if this process fails, torchrun's report shows its traceback
def run() -> None:
    parser = training_options(__doc__)
    args = parser.parse_args()

    # torchrun runs this whole script once per process and tells each one its number
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    with short_errors(parser):
        check_share(world_size, args.batch_size)
        check_save(args.save)
    if rank == 0:
        print("PyTorch version:", torch.__version__)
        print("CUDA available:", torch.cuda.is_available())
        print("Number of GPUs available:", torch.cuda.device_count(), flush=True)
    main(rank, world_size, args.epochs, args.batch_size, args.save)


if __name__ == "__main__":
    run()
