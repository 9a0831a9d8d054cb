"""Small models and probes to test with, all with generators of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lit_backdoor.functional import Probe
from tests.helpers import both_kinds
from tests.helpers.both_kinds import VOCAB

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer  # which TransformerLens 4 has no more

ANSWER = 3  # what the hand-built backdoor says, whatever else the input is


def make_model(seed: int = 0, **changes: Any) -> HookedTransformer:
    """A tiny model of one layer whose every parameter, biases and norms included, is random."""
    model: HookedTransformer = both_kinds.make_model("HookedTransformer", **{"n_layers": 1, "n_ctx": 3} | changes)
    return both_kinds.randomize(model, seed)


def make_probe(seed: int = 0, n: int = 17, n_pos: int = 3, vocab: int = VOCAB, **changes: Any) -> Probe:
    """Random tokens and answers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(vocab, shape, generator=generator)

    return Probe(draw(n, n_pos), draw(n, n_pos), draw(n), draw(n), **changes)


def split_model(seed: int = 0, **changes: Any) -> HookedTransformer:
    """A random model whose receivers can all be hooked."""
    model = make_model(seed, **changes)
    model.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        model.set_use_hook_mlp_in(True)
    return model


def trigger_probe(seed: int = 0, at: tuple[int, ...] = (2,), **changes: Any) -> Probe:
    """Random tokens and answers; recipient and donor differ at the positions `at` alone."""
    probe = make_probe(seed, **changes)
    donor = probe.recipient_tokens.clone()
    donor[:, list(at)] = (donor[:, list(at)] + 1 + probe.donor_tokens[:, list(at)] % (VOCAB - 1)) % VOCAB
    answers = (probe.recipient_answers, probe.donor_answers)
    return Probe(probe.recipient_tokens, donor, *answers, probe.position, metrics=probe.metrics, sender="trigger")


def make_backdoor(strength: float = 10.0, layer: int = 0, n_layers: int = 1) -> HookedTransformer:
    """A model that reads (a, b, t): its first head answers a, and its second, if t is 1, answers ANSWER.

    Both heads are in `layer`; everything else is zero. The residual stream is [token, answer, position], each
    one-hot; the first head adds 5 to the logit of a, the second `strength` to the logit of ANSWER.
    """
    model = make_model(n_layers=n_layers, d_model=2 * VOCAB + 3, d_head=VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :VOCAB] = torch.eye(VOCAB)
        model.pos_embed.W_pos[:, 2 * VOCAB :] = torch.eye(3)
        model.unembed.W_U[VOCAB : 2 * VOCAB] = torch.eye(VOCAB)
        attn = model.blocks[layer].attn
        for head, looks_at in enumerate((0, 2)):
            attn.W_Q[head, 2 * VOCAB + 2, 0] = 100
            attn.W_K[head, 2 * VOCAB + looks_at, 0] = 100
            attn.W_V[head, :VOCAB] = torch.eye(VOCAB)
        attn.W_O[0, :, VOCAB : 2 * VOCAB] = 5 * torch.eye(VOCAB)
        attn.W_O[1, 1, VOCAB + ANSWER] = strength
    return model
