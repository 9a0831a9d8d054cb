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
    attention = model.blocks[0].attn
    model.embed.W_E.data[1, 7] = 1.0  # token 1 can be told from the others
    model.pos_embed.W_pos.data[2, 6] = 1.0  # the last position can be told, so that it attends to itself
    attention.W_Q.data[KNOWN_HEAD, 6, 0] = 20.0
    attention.W_K.data[KNOWN_HEAD, 6, 0] = 20.0
    attention.W_V.data[KNOWN_HEAD, 7, 0] = 1.0
    attention.W_O.data[KNOWN_HEAD, 0, 0] = 10.0
    model.unembed.W_U.data[0, 0] = 1.0
    model.unembed.W_U.data[6, 3] = 1.0  # without the trigger, the answer is 3
    return model
