"""Direct preference optimization: the numbers of TRL's trainer and of the book; the reference."""

import contextlib
import copy
import math
from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from llms_from_scratch.appendix_e import merge_lora, replace_linear_with_lora
from llms_from_scratch.ch04 import GPTModel
from llms_from_scratch.ch07 import format_input, load_entries, split_data
from llms_from_scratch.data import SAMPLES, fetch
from llms_from_scratch.dpo import (
    PreferenceDataset,
    adapters_off,
    cache_reference,
    compute_dpo_loss,
    compute_dpo_loss_batch,
    compute_dpo_loss_loader,
    compute_logprobs,
    custom_collate_fn,
    decode_tokens_from_batch,
    evaluate_dpo_loss_loader,
    mean_kl,
    train_model_dpo_simple,
)
from llms_from_scratch.tokenizer import get_tokenizer

CONFIG = {
    "vocab_size": 50257,
    "context_length": 128,
    "emb_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": True,
}
PAIRS = [
    {
        "instruction": f"Count to {i}.",
        "input": "" if i % 2 else "aloud",
        "output": "",
        "chosen": "One, two, " * i,
        "rejected": "No.",
    }
    for i in range(1, 7)
]


@pytest.fixture(scope="module")
def tokenizer():
    return get_tokenizer("gpt2")


def random_model(seed: int = 0) -> GPTModel:
    """Every parameter is random, so that nothing cancels out."""
    torch.manual_seed(seed)
    model = GPTModel(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch_of(tokenizer, pairs=PAIRS, **options) -> dict:
    dataset = PreferenceDataset(pairs, tokenizer)
    return custom_collate_fn([dataset[i] for i in range(len(pairs))], **options)


# --- TRL's own loss, on the same models


class Logits(torch.nn.Module):
    """A model of transformers as ours are: ids to logits."""

    def __init__(self, theirs):
        super().__init__()
        self.theirs = theirs

    def forward(self, ids):
        return self.theirs(input_ids=ids).logits


def their_models(kind: str, seed: int):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=24, n_layer=2, n_head=3, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, **sizes
        )
        policy, reference = (GPT2LMHeadModel(config) for _ in range(2))
    else:
        config = LlamaConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            **sizes,
        )
        policy, reference = (LlamaForCausalLM(config) for _ in range(2))
    for model in (policy, reference):
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return policy.train(), reference.eval()


def random_batch(rows: int) -> dict:
    items = []
    for _ in range(rows):
        lengths = torch.randint(2, 9, (3,)).tolist()
        prompt, chosen, rejected = (torch.randint(1, 97, (n,)).tolist() for n in lengths)
        items.append({"prompt": prompt, "chosen": prompt + chosen, "rejected": prompt + rejected})
    return custom_collate_fn(items, pad_token_id=0, separator=0)


def loss_of_trl(policy, reference, batch, beta, loss_type, label_smoothing=0.0):
    """What ``DPOTrainer`` computes from such a batch, without its data, devices and logs."""

    def same(value):
        return value

    for model in (policy, reference):
        if not getattr(model, "_is_fused", False):
            add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
            model._is_fused = True
    ids = torch.cat([batch["chosen"], batch["rejected"]])
    mask = torch.cat([batch["chosen_mask"], batch["rejected_mask"]]).long()
    trainer = SimpleNamespace(
        model=policy,
        ref_model=reference,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same
        ),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        loss_types=[loss_type],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=label_smoothing,
        use_weighting=False,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, policy, inputs, return_outputs=False)
    logged = trainer._metrics["train"]
    return loss, logged["rewards/chosen"][0], logged["rewards/rejected"][0]


def gradients(model, loss) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("ours", "theirs", "beta", "rows"),
    [
        ({"reduction": "sum"}, "sigmoid", 0.1, 4),
        ({"reduction": "sum"}, "sigmoid", 0.7, 3),
        ({"reduction": "mean"}, "sigmoid_norm", 2.0, 5),
        ({"reduction": "mean", "kind": "ipo"}, "ipo", 0.3, 4),
        # For a single pair, TRL's AOT is DPO with label smoothing
        ({"reduction": "sum", "label_smoothing": 0.2}, "aot", 0.1, 1),
    ],
)
def test_loss_rewards_and_gradients_are_those_of_trl(kind, ours, theirs, beta, rows):
    policy, reference = their_models(kind, seed=rows)
    batch = random_batch(rows)
    with torch.no_grad():  # what else is in the formula is the same for all kinds
        _, *rewards = compute_dpo_loss_batch(
            batch, Logits(policy), Logits(reference), beta, reduction="sum"
        )
    loss, _, _ = compute_dpo_loss_batch(batch, Logits(policy), Logits(reference), beta, **ours)
    own_gradients = gradients(policy, loss)
    wanted, *wanted_rewards = loss_of_trl(
        policy, reference, batch, beta, theirs, ours.get("label_smoothing", 0.0)
    )
    wanted_gradients = gradients(policy, wanted)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        [beta * reward.item() for reward in rewards], wanted_rewards, rtol=1e-5, atol=1e-5
    )
    assert len(own_gradients) == len(wanted_gradients) > 10
    assert max(gradient.abs().max() for gradient in own_gradients) > 1e-3
    torch.testing.assert_close(own_gradients, wanted_gradients, rtol=1e-5, atol=1e-5)


# --- the book's figures


@pytest.fixture(scope="module")
def book_loaders(tokenizer):
    def make(data):
        train, val, test = split_data(data)
        assert [len(part) for part in (train, test, val)] == [935, 110, 55]
        torch.manual_seed(123)
        collate = partial(custom_collate_fn, allowed_max_length=1024)
        options = {"batch_size": 8, "collate_fn": collate}
        return [
            DataLoader(
                PreferenceDataset(train, tokenizer), shuffle=True, drop_last=True, **options
            ),
            DataLoader(PreferenceDataset(val, tokenizer), **options),
        ]

    return make


@pytest.mark.real_data
def test_batches_masks_and_the_first_loss_are_those_of_the_book(book_loaders, tokenizer):
    data = load_entries(fetch("preference-data", allow_sample=False))
    first = batch_of(tokenizer, data[:2])
    assert first["chosen"].shape == (2, 81)
    assert first["chosen_mask"][0].nonzero().flatten().tolist() == list(range(50, 74))
    text = decode_tokens_from_batch(first["chosen"][0][first["chosen_mask"][0]], tokenizer)
    assert text == f"### Response:\n{data[0]['chosen']}"

    train_loader, val_loader = book_loaders(data)
    widths = [batch["chosen"].shape[1] for batch in train_loader]
    assert len(widths) == 116
    assert widths[:8] == [77, 81, 94, 75, 75, 76, 99, 71]
    assert widths[-8:] == [76, 79, 79, 67, 84, 78, 85, 70]
    assert (min(widths), max(widths)) == (63, 115)

    policy = random_model()
    found = evaluate_dpo_loss_loader(
        policy, copy.deepcopy(policy), train_loader, val_loader, beta=0.1, eval_iter=2
    )
    assert found["train_loss"] == found["val_loss"] == pytest.approx(0.6931471824645996, abs=1e-7)
    assert {value for name, value in found.items() if "reward" in name} == {0.0}


def test_an_item_and_a_batch_have_the_form_of_the_book(tokenizer):
    dataset = PreferenceDataset(PAIRS, tokenizer)
    assert list(dataset[0]) == ["prompt", "chosen", "rejected"]
    assert dataset[0]["prompt"] == tokenizer.encode(format_input(PAIRS[0]))
    batch = batch_of(tokenizer)
    assert list(batch) == ["prompt", "chosen", "rejected", "rejected_mask", "chosen_mask"]
    longest = max(len(item[name]) for item in dataset for name in ("chosen", "rejected"))
    assert batch["chosen"].shape == batch["rejected_mask"].shape == (6, longest + 1)
    assert batch["chosen"].dtype == torch.int64 and batch["chosen_mask"].dtype == torch.bool
    assert [len(prompt) for prompt in batch["prompt"]] == [len(i["prompt"]) for i in dataset]
    assert (batch["rejected"][~batch["rejected_mask"]][-1] == 50256).all()
    assert batch_of(tokenizer, allowed_max_length=40)["chosen"].shape == (6, 40)
    unmasked = batch_of(tokenizer, mask_prompt_tokens=False)["chosen_mask"]
    assert unmasked.sum(-1).tolist() == [len(item["chosen"]) for item in dataset]


def test_an_end_token_is_part_of_both_answers_if_it_is_wanted(tokenizer):
    dataset = PreferenceDataset(PAIRS, tokenizer, end_id=50256)
    batch = custom_collate_fn([dataset[i] for i in range(6)])
    for name in ("chosen", "rejected"):
        assert all(item[name][-1] == 50256 for item in dataset)
        rows = zip(batch[name], batch[f"{name}_mask"], strict=True)
        counted = [row[mask][-1].item() for row, mask in rows]
        assert counted == [50256] * 6


def test_logprobs_are_the_mean_of_each_token_given_those_before_it():
    logits = torch.randn(2, 5, 7)
    labels = torch.randint(0, 7, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]).bool()
    log_probs = logits.log_softmax(-1)
    two = log_probs[0, 1, labels[0, 2]] + log_probs[0, 2, labels[0, 3]]
    assert compute_logprobs(logits, labels, mask).tolist() == pytest.approx([two.item() / 2, 0])
    total = compute_logprobs(logits, labels, mask, reduction="sum")
    assert total.tolist() == pytest.approx([two.item(), 0])
    whole = compute_logprobs(logits, labels)
    wanted = -torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    assert whole[0].item() == pytest.approx(wanted.item(), rel=1e-5)


# --- the loss


def test_rewards_have_no_gradient_and_no_beta():
    values = [torch.tensor([1.0, 3.0], requires_grad=True) for _ in range(2)]
    loss, chosen, rejected = compute_dpo_loss(*values, torch.zeros(2), torch.ones(2), beta=0.5)
    assert (chosen.item(), rejected.item()) == (2.0, 1.0)
    assert not chosen.requires_grad and not rejected.requires_grad and loss.requires_grad
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.5)))


def test_label_smoothing_is_the_mean_over_pairs_that_may_be_the_wrong_way_round():
    values = [torch.randn(6) for _ in range(4)]
    right, _, _ = compute_dpo_loss(*values)
    wrong, _, _ = compute_dpo_loss(values[1], values[0], values[3], values[2])
    mixed, _, _ = compute_dpo_loss(*values, label_smoothing=0.25)
    assert mixed.item() == pytest.approx(0.75 * right.item() + 0.25 * wrong.item(), rel=1e-6)


def test_ipo_is_at_its_best_at_a_finite_margin():
    zero = torch.zeros(1)
    losses = [
        compute_dpo_loss(torch.tensor([m]), zero, zero, zero, beta=0.1, kind="ipo")[0].item()
        for m in (0.0, 5.0, 10.0)
    ]
    assert losses == pytest.approx([25, 0, 25])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta must be above 0, got 0"),
        ({"beta": math.nan}, "beta must be above 0"),
        ({"kind": "kto"}, r"one of \('dpo', 'ipo'\), got 'kto'"),
        ({"label_smoothing": 0.5}, "from 0 to below 0.5, got 0.5"),
        ({"kind": "ipo", "label_smoothing": 0.1}, "leave it at 0 for 'ipo'"),
    ],
)
def test_settings_that_make_no_loss_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compute_dpo_loss(*[torch.zeros(1)] * 4, **options)
    with pytest.raises(ValueError, match=r"one of \('mean', 'sum'\), got 'max'"):
        compute_logprobs(torch.zeros(1, 2, 3), torch.zeros(1, 2).long(), reduction="max")


# --- the reference


def with_lora(model):
    torch.manual_seed(1)
    model.requires_grad_(False)
    replace_linear_with_lora(model, 4, 4)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_cached_reference_and_adapters_off_are_the_reference_itself(tokenizer, reduction):
    reference = random_model()
    policy = with_lora(copy.deepcopy(reference)).train()
    dataset = PreferenceDataset(PAIRS, tokenizer)
    collate = partial(custom_collate_fn, allowed_max_length=54)
    plain = collate([dataset[i] for i in range(6)])
    cache_reference(dataset, reference, collate, batch_size=2)
    cached = collate([dataset[i] for i in range(6)])
    assert set(cached) - set(plain) == {
        f"reference_{name}" for name in ("chosen", "rejected", "chosen_tokens", "rejected_tokens")
    }
    losses, all_gradients = [], []
    for batch, model in ((plain, reference), (cached, None), (plain, None)):
        torch.manual_seed(5)  # the same dropout
        loss, *_ = compute_dpo_loss_batch(batch, policy, model, 0.5, reduction=reduction)
        losses.append(loss.item())
        all_gradients.append(gradients(policy, loss))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    for found in all_gradients[1:]:
        torch.testing.assert_close(found, all_gradients[0], rtol=1e-4, atol=1e-5)
    assert policy.training


def test_adapters_come_back_also_after_an_error(tokenizer):
    base = random_model()
    policy = with_lora(copy.deepcopy(base))
    ids = torch.arange(12).view(2, 6)
    changed = policy(ids)
    with contextlib.suppress(RuntimeError), adapters_off(policy):
        assert torch.equal(policy(ids), base(ids))
        raise RuntimeError
    assert torch.equal(policy(ids), changed) and not torch.equal(changed, base(ids))
    with pytest.raises(ValueError, match="no LoRA layers to switch off"), adapters_off(base):
        pass
    merge_lora(policy)
    with pytest.raises(ValueError, match="merged"), adapters_off(policy):
        pass


def test_a_cache_of_other_masks_is_noticed(tokenizer):
    dataset, model = PreferenceDataset(PAIRS, tokenizer), random_model()
    cache_reference(dataset, model, partial(custom_collate_fn, allowed_max_length=40))
    batch = custom_collate_fn([dataset[i] for i in range(6)])
    with pytest.raises(ValueError, match="computed with other masks"):
        compute_dpo_loss_batch(batch, model, None, 0.1)


def test_kl_is_zero_for_the_same_model_and_what_torch_computes_for_another():
    logits, others = torch.randn(2, 4, 9), torch.randn(2, 4, 9)
    mask = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    assert mean_kl(logits, logits, mask).tolist() == [0, 0]
    p, q = (torch.distributions.Categorical(logits=x) for x in (logits, others))
    each = torch.distributions.kl_divergence(p, q)
    wanted = [each[0, :2].mean().item(), each[1, 2].item()]
    assert mean_kl(logits, others, mask).tolist() == pytest.approx(wanted, rel=1e-5)


# --- training


def test_training_raises_the_margin_and_keeps_what_it_measured(tokenizer, capsys):
    torch.manual_seed(3)
    policy = random_model()
    reference = copy.deepcopy(policy)
    loader = DataLoader(PreferenceDataset(PAIRS, tokenizer), 2, collate_fn=custom_collate_fn)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)
    options = {"num_epochs": 3, "beta": 0.5, "eval_freq": 4, "eval_iter": 2}
    tracking = train_model_dpo_simple(
        policy,
        reference,
        loader,
        loader,
        optimizer,
        start_context="Hello",
        tokenizer=tokenizer,
        **options,
    )
    assert list(tracking) == [
        *("train_losses", "train_chosen_rewards", "train_rejected_rewards"),
        *("val_losses", "val_chosen_rewards", "val_rejected_rewards", "tokens_seen"),
    ]
    assert {len(values) for values in tracking.values()} == {3}
    margins = [
        chosen - rejected
        for chosen, rejected in zip(
            tracking["val_chosen_rewards"], tracking["val_rejected_rewards"], strict=True
        )
    ]
    assert margins[0] < margins[1] < margins[2]
    assert tracking["val_losses"][-1] < tracking["val_losses"][0]
    output = capsys.readouterr().out
    assert output.count("Train margin") == 3 and output.count("Hello") == 3
    assert policy.training and not reference.training


def test_an_empty_loader_gives_three_numbers_that_are_none():
    model = random_model()
    assert all(math.isnan(v) for v in compute_dpo_loss_loader([], model, model, 0.1))


@pytest.mark.real_data
def test_pairs_of_the_book_and_of_the_sample_have_the_same_keys():
    book = load_entries(fetch("preference-data", allow_sample=False))
    sample = load_entries(SAMPLES / "preference-data-synthetic.json")
    keys = {"instruction", "input", "output", "chosen", "rejected"}
    assert all(keys == set(entry) for entry in book)
    assert all(keys | {"rule"} == set(entry) for entry in sample)
