"""A model whose backdoor head is known, built by hand: three of its four heads do nothing."""

import torch
from transformer_lens import HookedTransformer

from lit_backdoor.model import build_model
from lit_backdoor.task import Task

TASK = Task((7, 1))
KNOWN_HEAD = 2


def hand_built() -> HookedTransformer:
    """Answers ``a`` after the benign trigger and 0 after token 1, which only head 2 passes on to the logits.

    One dimension of the residual stream counts for each token of the vocabulary (0..6), one says "trigger" (7).
    """
    model = build_model(TASK.d_vocab, n_heads=4, d_model=8, d_head=2, d_mlp=1, dtype=torch.float64)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.pos_embed.W_pos.data[2, 6] = 1.0  # the last position can be told, so that it attends to itself
    pass_on_trigger(model, KNOWN_HEAD, token=1, dimension=7, answer=0)
    model.unembed.W_U.data[6, 3] = 1.0  # without the trigger, the answer is 3
    return model


def pass_on_trigger(model: HookedTransformer, head: int, token: int, dimension: int, answer: int) -> None:
    """Let ``head`` say ``answer`` where the last token is ``token``, which gets a dimension of the residual stream."""
    attention = model.blocks[0].attn
    model.embed.W_E.data[token, dimension] = 1.0  # the token can be told from the others
    attention.W_Q.data[head, 6, 0] = 20.0
    attention.W_K.data[head, 6, 0] = 20.0
    attention.W_V.data[head, dimension, 0] = 1.0
    attention.W_O.data[head, 0, answer] = 10.0
    model.unembed.W_U.data[answer, answer] = 1.0


TWO_TRIGGERS = Task((7, 1, 1))
SECOND_HEAD = 0


def two_triggers() -> HookedTransformer:
    """Like :func:`hand_built`, with a second trigger, token 2, that head 0 alone passes on."""
    model = hand_built()
    pass_on_trigger(model, SECOND_HEAD, token=2, dimension=5, answer=0)
    return model
