"""Builds the small transformer of the paper's Appendix B as a TransformerLens ``HookedTransformer``."""

import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_backdoor.functional.hooked_model import changes_nothing
from lit_backdoor.limits import PositiveInt, within_limits
from lit_backdoor.task import N_CTX

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ActFn = Literal["relu", "gelu", "silu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"]
"""Activation functions on offer: those of TransformerLens that act on each neuron by itself."""
ACT_FNS: tuple[str, ...] = get_args(ActFn)


@within_limits
def build_model(
    d_vocab: PositiveInt,
    n_heads: PositiveInt = 4,
    d_model: PositiveInt = 128,
    d_head: PositiveInt | None = None,
    d_mlp: PositiveInt = 512,
    n_layers: PositiveInt = 1,
    act_fn: ActFn = "relu",
    normalization_type: Literal["LN"] | None = None,
    train_biases: bool = False,
    dtype: torch.dtype = torch.float32,
) -> "HookedTransformer":
    """A HookedTransformer over three tokens, ``d_vocab`` words in and out, initialised from the global random state.

    Args:
        d_vocab: size of the vocabulary, in and out.
        d_head: width of a head; ``d_model / n_heads`` if not given.
        normalization_type: ``None`` (as in the paper) or ``LN``.
        train_biases: without it every bias is frozen at zero, as in the paper.

    Raises:
        ValueError: if a size is outside its limits, a name is unknown, heads do not divide ``d_model``, or
            TransformerLens is 4.0 or later.
    """
    if d_head is None:
        if d_model % n_heads:
            raise ValueError(
                f"model.n_heads: {n_heads} does not divide model.d_model {d_model}; choose another or set model.d_head"
            )
        d_head = d_model // n_heads

    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        raise ValueError(
            f"model: transformer-lens {version('transformer-lens')} has no HookedTransformer, which the commands need; "
            "pip install 'transformer-lens<4' (the callbacks alone run with 4.x too)"
        ) from error

    config = HookedTransformerConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=d_model,
        d_head=d_head,
        d_mlp=d_mlp,
        n_ctx=N_CTX,
        d_vocab=d_vocab,
        d_vocab_out=d_vocab,
        act_fn=act_fn,
        normalization_type=normalization_type,
        dtype=dtype,
        device="cpu",  # Lightning moves the parameters; see BackdoorModule.on_fit_start
        seed=None,  # a seed here would reseed every global generator
    )
    with warnings.catch_warnings():
        # transformer-lens 3.9 announces that 4.0 removes HookedTransformer; see the bounds in pyproject.toml.
        warnings.filterwarnings("ignore", message=r"HookedTransformer.*", category=DeprecationWarning)
        model = HookedTransformer(config)
    model.embed.register_forward_hook(_look_up)
    if not train_biases:
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1].startswith("b_"):
                parameter.requires_grad_(False)
    return model


@changes_nothing
def _look_up(embed: Any, args: tuple[Tensor], _: Tensor) -> Tensor:
    """The same embeddings, [batch, pos, d_model], whose gradients are summed in one order.

    TransformerLens indexes ``W_E`` with the tokens, and the gradient of that is summed by several threads in whichever
    order they come. Before ``hook_embed``, so that hooks there have their say.
    """
    return F.embedding(args[0], embed.W_E)
