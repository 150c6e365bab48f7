"""New tokens for a tokenizer and a pretrained model: longer tables, and what is in their new rows.

A new token needs an id (``extend_tokenizer``), a row of the token embedding to be read, and a row
of the output layer to be written (``resize_token_embeddings``). What it means, training must say.
"""

from collections.abc import Sequence

import tiktoken
import torch
import torch.nn as nn

from llms_from_scratch.bpe import BPETokenizer, has_surrogates


def extend_tokenizer(
    tokenizer: tiktoken.Encoding | BPETokenizer, tokens: Sequence[str], name: str = "gpt2_custom"
) -> tiktoken.Encoding | BPETokenizer:
    """A tokenizer like this one that also knows ``tokens``: the first gets the id ``n_vocab``.

    They are special tokens: in a text, they count as such only where ``allowed_special`` has them.
    All other texts keep their ids, and the given tokenizer stays as it was. ``name`` is that of an
    encoding. Raises ``ValueError`` for a token that is empty, known already or given twice, and for
    one that begins another: tiktoken tries them in the order of a hash table, not by length.

    >>> extended = extend_tokenizer(BPETokenizer([]), ["<|user|>", "<|reply|>"])
    >>> extended.encode("<|reply|>A", allowed_special="all")
    [257, 65]
    """
    if isinstance(tokenizer, tiktoken.Encoding):
        known, specials = tokenizer._mergeable_ranks, tokenizer._special_tokens
    elif isinstance(tokenizer, BPETokenizer):
        known, specials = set(tokenizer.vocab.values()), tokenizer.special_tokens
    else:
        raise ValueError(
            f"cannot extend a {type(tokenizer).__name__}: give a tiktoken.Encoding or BPETokenizer"
        )
    if isinstance(tokens, str):
        raise ValueError(f"tokens must be a list of texts, not one text: [{tokens!r}]")
    _check_new_tokens(tokens, known, specials)
    first = tokenizer.n_vocab
    specials = specials | {token: first + i for i, token in enumerate(tokens)}
    if isinstance(tokenizer, tiktoken.Encoding):
        return tiktoken.Encoding(
            name=name,
            pat_str=tokenizer._pat_str,
            mergeable_ranks=tokenizer._mergeable_ranks,
            special_tokens=specials,
        )
    return BPETokenizer(tokenizer.merges, specials, tokenizer.pattern, tokenizer.byte_order)


def _check_new_tokens(tokens: Sequence[str], known, specials: dict[str, int]) -> None:
    seen = list(specials)
    for token in tokens:
        if not token or has_surrogates(token):
            raise ValueError(f"no UTF-8 text can have the token {token!r}")
        if token in seen or token.encode("utf-8") in known:
            raise ValueError(f"{token!r} is in the vocabulary already, or given twice")
        for other in seen:
            if token.startswith(other) or other.startswith(token):
                short, long = sorted((token, other), key=len)
                raise ValueError(
                    f"{short!r} begins {long!r}, so that the longer one could be taken for the "
                    "shorter and a rest: end each with a mark of its own, as <|...|> does"
                )
        seen.append(token)


def resize_token_embeddings(model: nn.Module, new_size: int) -> None:
    """Make room for ``new_size`` tokens in a model's token embedding and output layer, in place.

    Works for every model here, tied or not: one tensor for both layers stays one tensor. Old rows
    keep their bits, so old logits stay as they were. A new row is the mean of the old ones, so
    that its logit is the mean of the old logits: a token that nobody has trained gets at most the
    average probability, 1/old_size, while random rows could outbid those that mean something
    (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021). Dtype, device
    and ``requires_grad`` stay, there is no bias, and ``model.cfg`` becomes a new dictionary with
    the new ``vocab_size``. Parameters are replaced: make the optimizer afterwards.

    Raises ``ValueError`` for a size that is not an integer or below the present one, and for an
    output layer that is not a plain row per token: resize first, then replace it with a
    classifier's (chapter 6) or wrap it in LoRA (appendix E).
    """
    old_size = _check_vocabulary_layers(model)
    if not isinstance(new_size, int) or isinstance(new_size, bool) or new_size < old_size:
        raise ValueError(
            f"new_size is {new_size!r}, must be an integer of at least {old_size}, the tokens that "
            "the model has: to drop tokens, make a smaller model and copy the rows to be kept"
        )
    tied = model.out_head.weight is model.tok_emb.weight
    model.tok_emb.weight = _with_mean_rows(model.tok_emb.weight, new_size)
    model.out_head.weight = (
        model.tok_emb.weight if tied else _with_mean_rows(model.out_head.weight, new_size)
    )
    model.tok_emb.num_embeddings = model.out_head.out_features = new_size
    model.cfg = {**model.cfg, "vocab_size": new_size}  # the caller's dictionary is left alone


def _check_vocabulary_layers(model: nn.Module) -> int:
    """The number of tokens of a model whose first and last layer have a row for each of them."""
    embedding, head = getattr(model, "tok_emb", None), getattr(model, "out_head", None)
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(f"{type(model).__name__} has no tok_emb: give the model inside a wrapper")
    size = embedding.num_embeddings
    if type(head) is not nn.Linear or head.bias is not None or head.out_features != size:
        raise ValueError(
            f"the output layer, a {type(head).__name__}, is not {size} rows without bias, one for "
            "each token: resize before it is replaced by a classifier's or wrapped in LoRA"
        )
    return size


def _with_mean_rows(weight: nn.Parameter, new_size: int) -> nn.Parameter:
    """A longer table (new_size, emb_dim); its new rows are the mean of ``weight``'s rows."""
    old_size, emb_dim = weight.shape
    with torch.no_grad():
        exact = torch.promote_types(weight.dtype, torch.float32)  # half precision loses small terms
        mean = weight.mean(dim=0, keepdim=True, dtype=exact).to(weight.dtype)  # (1, emb_dim)
        rows = torch.cat((weight, mean.expand(new_size - old_size, emb_dim)))
    return nn.Parameter(rows, requires_grad=weight.requires_grad)
