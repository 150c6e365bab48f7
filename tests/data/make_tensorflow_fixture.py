"""Write tiny-gpt2-tensorflow: a random tiny GPT-2 as OpenAI stored theirs, by TensorFlow itself.

    python tests/data/make_tensorflow_fixture.py    # needs tensorflow, transformers and torch

The same weights are written for the Hugging Face hub (by transformers) and as expected.npz.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
import transformers

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
FOLDER = Path(__file__).parent / "tiny-gpt2-tensorflow"


def main() -> None:
    import tensorflow as tf

    torch.manual_seed(7)
    config = transformers.GPT2Config(
        vocab_size=101, n_positions=20, n_embd=24, n_layer=2, n_head=3, resid_pdrop=0.0
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(FOLDER / "hub")

    arrays = {openai_name(k): v.numpy() for k, v in model.transformer.state_dict().items()}
    arrays = {k: v[None] if k.endswith("/w") else v for k, v in arrays.items()}  # (1, d_in, d_out)
    np.savez(FOLDER / "expected.npz", **arrays)
    settings = {"n_vocab": 101, "n_ctx": 20, "n_embd": 24, "n_head": 3, "n_layer": 2}
    (FOLDER / "hparams.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")

    os.chdir(FOLDER)  # the file "checkpoint" names the path it was saved to
    tf.compat.v1.disable_eager_execution()
    variables = [tf.compat.v1.Variable(v, name=k) for k, v in sorted(arrays.items())]
    with tf.compat.v1.Session() as session:
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, "./model.ckpt")


def openai_name(hub_name: str) -> str:
    name = hub_name.replace("h.0.", "h0.").replace("h.1.", "h1.").replace(".", "/")
    if name in ("wte/weight", "wpe/weight"):
        return "model/" + name.removesuffix("/weight")
    kind = "g" if "ln_" in name else "w"
    return "model/" + name.replace("/weight", f"/{kind}").replace("/bias", "/b")


if __name__ == "__main__":
    main()
