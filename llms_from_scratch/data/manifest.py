"""The one list of files that this project may download: what, from where, and how to check it."""

from dataclasses import dataclass

BOOK_REPOSITORY = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2"
HUB = "https://huggingface.co"  # HF_ENDPOINT replaces it
BACKUP = "https://f001.backblazeb2.com/file/LLMs-from-scratch"


@dataclass(frozen=True)
class Asset:
    """One downloadable file. On a mirror it lies at ``<folder>/<file_name>``."""

    name: str  # what fetch() is called with
    file_name: str
    urls: tuple[str, ...]  # in the order in which they are tried
    licence: str
    description: str
    sha256: str | None = None  # None: see check_file for what is checked instead
    size: int | None = None  # bytes
    entries: int | None = None  # of a list in JSON
    member: str | None = None  # the one file of an archive that is used ...
    member_sha256: str | None = None  # ... and its hash
    sample: str | None = None  # bundled stand-in of the same format, used without a network

    @property
    def folder(self) -> str:
        return self.name.split("/")[0]


GPT2_SIZES = {"124M": "gpt2", "355M": "gpt2-medium", "774M": "gpt2-large", "1558M": "gpt2-xl"}

# Sizes in bytes where they are known (the data: 4 for each parameter); vocabulary and token ids are
# the same for all models
OPENAI_FILES = {
    "checkpoint": {"124M": 77, "355M": 77},
    "hparams.json": {"124M": 90, "355M": 91, "1558M": 91},
    "model.ckpt.data-00000-of-00001": {
        "124M": 497_759_232,
        "355M": 1_419_292_672,
        "774M": 3_096_120_320,
        "1558M": 6_230_444_800,
    },
    "model.ckpt.index": {"124M": 5_215, "355M": 10_399},
    "model.ckpt.meta": {"124M": 471_155, "355M": 926_519},
}


def _gpt2_weights() -> list[Asset]:
    """Each GPT-2 as the hub's safetensors file, and as OpenAI's TensorFlow checkpoint."""
    assets = []
    for size, hub_name in GPT2_SIZES.items():
        assets.append(
            Asset(
                name=f"{hub_name}/model.safetensors",
                file_name="model.safetensors",
                urls=(f"{HUB}/openai-community/{hub_name}/resolve/main/model.safetensors",),
                licence="Modified MIT (OpenAI)",
                description=f"weights of GPT-2, {size} parameters, in the hub's format",
            )
        )
        assets += [
            Asset(
                name=f"openai-{size}/{file_name}",
                file_name=file_name,
                urls=(f"{OPENAI}/models/{size}/{file_name}", f"{BACKUP}/gpt2/{size}/{file_name}"),
                licence="Modified MIT (OpenAI)",
                description=f"part of OpenAI's TensorFlow checkpoint of GPT-2, {size} parameters",
                size=sizes.get(size),
            )
            for file_name, sizes in OPENAI_FILES.items()
        ]
    return assets


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="the-verdict",
            file_name="the-verdict.txt",
            urls=(f"{BOOK_REPOSITORY}/ch02/01_main-chapter-code/the-verdict.txt",),
            sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
            size=20_479,
            licence="public domain",
            description='Edith Wharton, "The Verdict" (1908), the short story of chapters 2 to 5',
            sample="short-story.txt",
        ),
        Asset(
            name="gpt2-vocab/vocab.bpe",
            file_name="vocab.bpe",
            urls=(f"{OPENAI}/encodings/main/vocab.bpe", f"{OPENAI}/models/124M/vocab.bpe"),
            sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
            size=456_318,
            licence="Modified MIT (OpenAI)",
            description="merges of the GPT-2 tokenizer (a compressed copy ships with this package)",
        ),
        Asset(
            name="gpt2-vocab/encoder.json",
            file_name="encoder.json",
            urls=(f"{OPENAI}/encodings/main/encoder.json", f"{OPENAI}/models/124M/encoder.json"),
            sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
            size=1_042_301,
            licence="Modified MIT (OpenAI)",
            description="token ids of the GPT-2 tokenizer (this package can rebuild it)",
        ),
        Asset(
            name="sms-spam",
            file_name="sms+spam+collection.zip",
            urls=(
                "https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
                f"{BACKUP}/sms%2Bspam%2Bcollection.zip",
            ),
            member="SMSSpamCollection",
            member_sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
            licence="CC BY 4.0",
            description="SMS Spam Collection: 5,572 messages, labelled ham or spam (chapter 6)",
            sample="sms-spam-synthetic.zip",
        ),
        Asset(
            name="instruction-data",
            file_name="instruction-data.json",
            urls=(f"{BOOK_REPOSITORY}/ch07/01_main-chapter-code/instruction-data.json",),
            sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
            size=203_524,
            licence="Apache-2.0",
            description="1,100 instructions with responses, to finetune on (chapter 7)",
            sample="instruction-data-synthetic.json",
        ),
        Asset(
            name="alpaca-52k",
            file_name="alpaca_data.json",
            urls=(
                "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json",
            ),
            entries=52_002,
            licence="CC BY-NC 4.0",
            description="Stanford Alpaca: 52,002 instructions with responses (exercise 7.3)",
        ),
        *_gpt2_weights(),
    )
}
