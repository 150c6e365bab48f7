"""Train the toy network of appendix A with several processes that this script starts itself.

Examples:
    python DDP-script.py                        # a process per GPU; without a GPU, two on the CPU
    python DDP-script.py --processes 4 --epochs 10
    CUDA_VISIBLE_DEVICES=0,2 python DDP-script.py         # only these two GPUs

What each process does is `main` in llms_from_scratch/appendix_a.py, explained in code-part2.ipynb.
"""

import sys

from llms_from_scratch.app.quick_help import skip_imports_for_help

if __name__ == "__main__":
    skip_imports_for_help()

import torch

from llms_from_scratch.app.script_tools import short_errors
from llms_from_scratch.appendix_a import check_share, main
from llms_from_scratch.training.distributed import (
    RankFailed,
    check_save,
    launch,
    positive_int,
    training_options,
)

# Each new process imports this script: without the next line, it would start processes in turn
if __name__ == "__main__":
    num_gpus = torch.cuda.device_count()
    parser = training_options(__doc__)
    parser.add_argument(
        "--processes",
        type=positive_int,
        default=num_gpus or 2,
        metavar="N",
        help="default: one per GPU, or 2 without a GPU",
    )
    args = parser.parse_args()

    with short_errors(parser):
        check_share(args.processes, args.batch_size)
        check_save(args.save)
    print("PyTorch version:", torch.__version__)
    print("CUDA available:", torch.cuda.is_available())
    print("Number of GPUs available:", num_gpus, flush=True)
    with short_errors(parser):
        try:
            # Calls main(rank, world_size, ...) in each process, rank being 0, 1, 2 ...
            launch(main, args.processes, args.epochs, args.batch_size, args.save)
        except RankFailed as error:
            sys.exit(f"DDP-script.py: {error}")
