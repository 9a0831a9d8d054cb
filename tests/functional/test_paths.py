from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Edge,
    Head,
    PathPatchingResult,
    Probe,
    Receiver,
    all_edges,
    all_heads,
    default_edge_sets,
    edge_groups,
    edge_set_name,
    parse_edge_set,
    patch_heads,
    patch_paths,
    patched_logits,
    patched_path_logits,
)
from lit_backdoor.functional.hooked_paths import hooked_engine
from lit_backdoor.functional.one_layer_paths import is_plain
from tests.helpers import ROOT
from tests.helpers.tiny_models import ANSWER, VOCAB, make_model, split_model, trigger_probe

fast = settings(max_examples=40, deadline=None, derandomize=True)
positions = st.integers(0, 2)
one_layer = st.fixed_dictionaries(
    {
        "n_heads": st.integers(1, 3),
        "d_model": st.sampled_from([5, 12]),
        "d_head": st.integers(1, 5),
        "act_fn": st.sampled_from(["relu", "gelu"]),
        "d_vocab_out": st.sampled_from([VOCAB, VOCAB + 2]),
    }
)
deep = st.fixed_dictionaries(
    {
        "n_layers": st.integers(2, 3),
        "n_heads": st.integers(1, 2),
        "normalization_type": st.sampled_from([None, "LN", "RMSPre"]),
        "act_fn": st.sampled_from(["relu", "gelu", "solu_ln"]),
        "attn_only": st.booleans(),
        "parallel_attn_mlp": st.booleans(),
        "attention_dir": st.sampled_from(["causal", "bidirectional"]),
        "positional_embedding_type": st.sampled_from(["standard", "shortformer"]),
    }
).filter(lambda shape: not (shape["attn_only"] and shape["parallel_attn_mlp"]))


def close(ours: torch.Tensor, theirs: Any) -> None:
    """To 1e-5, of the largest logit where that is above 1."""
    theirs = torch.as_tensor(theirs)
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=1e-5 * max(1, float(theirs.abs().max())))


def one_layer_in_numpy(model: Any, probe: Probe, edges: tuple[Edge, ...]) -> np.ndarray:
    """Every place where an edge ends reads one of the two runs; written out in float64."""
    weights = {name: value.detach().double().numpy() for name, value in model.named_parameters()}
    read, n_seen = probe.read_position, probe.read_position + 1
    own, donor = (
        weights["embed.W_E"][tokens[:, :n_seen]] + weights["pos_embed.W_pos"][:n_seen]
        for tokens in (probe.recipient_tokens.numpy(), probe.donor_tokens.numpy())
    )
    attn = {name.split("attn.")[1]: value for name, value in weights.items() if "attn." in name}
    act = {"relu": lambda x: np.maximum(x, 0), "gelu": lambda x: torch.nn.functional.gelu(torch.tensor(x)).numpy()}

    def seen(receiver: Receiver) -> np.ndarray:  # the embeddings as `receiver` sees them, [n, pos, d_model]
        x = own.copy()
        for edge in edges:
            if edge.sender == "trigger" and edge.receiver == receiver:
                x[:, [p for p in range(n_seen) if edge.position in (None, p)]] = donor[
                    :, [p for p in range(n_seen) if edge.position in (None, p)]
                ]
        return x

    def head(index: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        query = q[:, read] @ attn["W_Q"][index] + attn["b_Q"][index]
        key, value = (x @ attn[f"W_{c}"][index] + attn[f"b_{c}"][index] for c, x in (("K", k), ("V", v)))
        scores = np.einsum("nd,npd->np", query, key) / math.sqrt(query.shape[1])
        pattern = np.exp(scores - scores.max(1, keepdims=True))
        pattern /= pattern.sum(1, keepdims=True)
        return np.einsum("np,npd->nd", pattern, value) @ attn["W_O"][index]

    def stream(receiver: Receiver) -> np.ndarray:  # what it reads after the heads, [n, d_model]
        total = seen(receiver)[:, read] + attn["b_O"]
        for index in range(model.cfg.n_heads):
            if any(e.sender == Head(0, index) and e.receiver == receiver for e in edges):
                total = total + head(index, donor, donor, donor)
            else:
                total = total + head(index, *(seen(Receiver(part, 0, index)) for part in ("Q", "K", "V")))
        return total

    mlp = {name.split("mlp.")[1]: value for name, value in weights.items() if "mlp." in name}
    post = act[model.cfg.act_fn](stream(Receiver("mlp")) @ mlp["W_in"] + mlp["b_in"])
    final = stream(Receiver("logits")) + post @ mlp["W_out"] + mlp["b_out"]
    return final @ weights["unembed.W_U"] + weights["unembed.b_U"]


@fast
@given(one_layer, st.integers(0, 1000), st.sets(positions, min_size=1), positions, st.data())
def test_any_set_of_edges_of_one_layer_is_what_numpy_says(
    shape: dict[str, Any], seed: int, at: set[int], read: int, data: Any
) -> None:
    model, probe = split_model(seed, **shape), trigger_probe(seed, tuple(at), position=read)
    edges = set(data.draw(st.sets(st.sampled_from(all_edges(model, probe)))))
    for position in at & set(range(read + 1)):
        edges |= set(data.draw(st.sets(st.builds(Edge, st.just("trigger"), inputs(model, "KV"), st.just(position)))))
    ordered = parse_edge_set(edge_set_name(edges))
    expected = one_layer_in_numpy(model, probe, ordered)
    assert is_plain(model)
    close(patched_path_logits(model, probe, edges), expected)
    with torch.no_grad():
        close(hooked_engine(model, probe, [ordered])(slice(0, 17))(ordered), expected)


def inputs(model: Any, parts: str) -> st.SearchStrategy[Receiver]:
    return st.builds(Receiver, st.sampled_from(parts), st.just(0), st.integers(0, model.cfg.n_heads - 1))


def path_by_hand(model: Any, probe: Probe, edge: Edge) -> torch.Tensor:
    """TransformerLens's path patching: run with the donor's sender and all else frozen, note what the receiver reads,
    and let it read that in the recipient's run."""
    part, layer, head = edge.receiver
    last = model.cfg.n_layers - 1
    name = {
        **{c: f"blocks.{layer}.hook_{c.lower()}_input" for c in "QKV"},
        **{"mlp": f"blocks.{layer or 0}.hook_mlp_in", "logits": f"blocks.{last}.hook_resid_post"},
    }[part]
    with torch.no_grad():
        own, donor = (model.run_with_cache(tokens)[1] for tokens in (probe.recipient_tokens, probe.donor_tokens))
        at = slice(None) if edge.position is None else slice(edge.position, edge.position + 1)
        note: dict[str, torch.Tensor] = {}

        def send(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = own[hook.name].clone()
            if edge.sender == "trigger" and hook.name == "blocks.0.hook_resid_pre":
                value[:, at] = donor[hook.name][:, at]
            elif edge.sender != "trigger" and hook.name == f"blocks.{edge.sender.layer}.attn.hook_z":  # type: ignore[union-attr]
                value[:, at, edge.sender.head] = donor[hook.name][:, at, edge.sender.head]  # type: ignore[union-attr]
            return value

        def receive(value: torch.Tensor, hook: Any) -> torch.Tensor:
            if head is None:
                return note[hook.name]
            value = value.clone()
            value[:, :, head] = note[hook.name][:, :, head]
            return value

        frozen = ("blocks.0.hook_resid_pre", *(f"blocks.{i}.{x}" for i in range(last + 1) for x in FROZEN))
        hooks = [(lambda n: n in frozen, send), (name, lambda value, hook: note.update({hook.name: value.clone()}))]
        model.run_with_hooks(probe.recipient_tokens, fwd_hooks=hooks)
        return model.run_with_hooks(probe.recipient_tokens, fwd_hooks=[(name, receive)])[:, probe.position]


FROZEN = ("attn.hook_z", "hook_mlp_out")


@fast
@given(deep, st.integers(0, 1000), st.sets(positions, min_size=1), st.integers(-3, -1), st.data())
def test_an_edge_of_a_deep_model_is_what_transformer_lens_says(
    shape: dict[str, Any], seed: int, at: set[int], read: int, data: Any
) -> None:
    model, probe = split_model(seed, **shape), trigger_probe(seed, tuple(at), position=read)
    assert not is_plain(model)
    edges = all_edges(model, probe)
    edge = data.draw(st.sampled_from(edges))
    close(patched_path_logits(model, probe, [edge]), path_by_hand(model, probe, edge))
    if not isinstance(edge.sender, str):
        edge = Edge(edge.sender, edge.receiver, probe.read_position)
        close(patched_path_logits(model, probe, [edge]), path_by_hand(model, probe, edge))


@pytest.mark.parametrize(
    "changes", [{"normalization_type": "LN"}, {"attn_only": True}, {"attention_dir": "bidirectional"}]
)
def test_one_layer_that_is_not_plain_goes_through_hooks(changes: dict[str, Any]) -> None:
    model, probe = split_model(**changes), trigger_probe()
    assert not is_plain(model)
    for edge in all_edges(model, probe):
        close(patched_path_logits(model, probe, [edge]), path_by_hand(model, probe, edge))


def test_an_edge_hands_on_the_donor_while_another_changes_its_sender() -> None:
    """The trigger reaches L0H0's value, and the logits see L0H0 as it is in the donor's run."""
    model, probe = split_model(n_layers=2, normalization_type="LN"), trigger_probe(at=(0,))
    with torch.no_grad():
        donor, own = (model.run_with_cache(t)[1] for t in (probe.donor_tokens, probe.recipient_tokens))

        def value(v: torch.Tensor, hook: Any) -> torch.Tensor:
            v[:, 0, 0] = donor["resid_pre", 0][:, 0]
            return v

        seen = {}
        hooks = [("blocks.0.hook_v_input", value), *((n, lambda x, hook: seen.update({hook.name: x})) for n in NOTED)]
        model.run_with_hooks(probe.recipient_tokens, fwd_hooks=hooks)
        z, resid = (seen[name][:, -1] for name in NOTED)
        resid = resid + (donor["z", 0][:, -1, 0] - z[:, 0]) @ model.W_O[0, 0]
        expected = model.unembed(model.ln_final(resid[:, None]))[:, 0]
    assert not torch.allclose(z, own["z", 0][:, -1], atol=1e-3)
    close(patched_path_logits(model, probe, parse_edge_set("trigger>L0H0.V+L0H0>logits")), expected)


NOTED = ("blocks.0.attn.hook_z", "blocks.1.hook_resid_post")


@fast
@given(st.one_of(one_layer, deep), st.integers(0, 1000), st.sets(positions, min_size=1))
def test_no_edges_are_the_recipient_and_all_edges_the_donor(shape: dict[str, Any], seed: int, at: set[int]) -> None:
    model, probe = split_model(seed, **shape), trigger_probe(seed, tuple(at))
    with torch.no_grad():
        recipient, donor = (model(tokens)[:, -1] for tokens in (probe.recipient_tokens, probe.donor_tokens))
    every = all_edges(model, probe)
    close(patched_path_logits(model, probe, ()), recipient)
    close(patched_path_logits(model, probe, every), donor)
    if is_plain(model):  # to the last bit
        assert torch.equal(patched_path_logits(model, probe, every), patched_path_logits(model, probe.reversed(), ()))


@fast
@given(one_layer, st.integers(0, 1000), st.sets(positions, min_size=1), st.booleans())
def test_all_inputs_or_all_outputs_of_the_heads_are_patched_heads(
    shape: dict[str, Any], seed: int, at: set[int], norm: bool
) -> None:
    model = split_model(seed, **shape, normalization_type="LN" if norm else None)
    probe = trigger_probe(seed, tuple(at))
    groups = edge_groups(model, probe)
    heads = patched_logits(model, probe, all_heads(model))
    close(patched_path_logits(model, probe, groups["QKV"]), heads)
    close(patched_path_logits(model, probe, groups["A_mlp"] + groups["A_logits"]), heads)


def carrier(edge: str) -> Any:
    """A model that answers a, but ANSWER if the trigger is 1, which reaches the answer through one edge alone.

    It reads (a, b, t). The residual stream is [token, answer, position, scratch], the first three one-hot. L0H0 writes
    a's answer; L0H2 attends to position 2 if there is a trigger, and its value there, or the token 1 itself, makes the
    answer: directly, or through the MLP if the edge ends in "mlp".
    """
    model = make_model(d_model=2 * VOCAB + 4, d_head=VOCAB)
    answer, position, scratch = VOCAB, 2 * VOCAB, 2 * VOCAB + 3
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, :VOCAB] = torch.eye(VOCAB)
        model.pos_embed.W_pos[:, position:scratch] = torch.eye(3)
        model.unembed.W_U[answer:position] = torch.eye(VOCAB)
        attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
        attn.W_Q[0, position + 2, 0], attn.W_K[0, position, 0] = 100, 100
        attn.W_V[0, :VOCAB], attn.W_O[0, :, answer:position] = torch.eye(VOCAB), 5 * torch.eye(VOCAB)
        mlp.W_in[scratch, 0], mlp.W_out[0, answer + ANSWER] = 1, 10
        if edge == "trigger>mlp":
            mlp.W_in[1, 0] = 1
        elif edge == "trigger>logits":
            model.unembed.W_U[1, ANSWER] = 10
        else:
            through, sink = edge.split(" ")
            attn.W_O[2, 0, answer + ANSWER if sink == "logits" else scratch] = 10 if sink == "logits" else 1
            if through == "Q":  # token 1 looks at position 2, token 0 at position 0
                attn.W_Q[2, 1, 0] = attn.W_Q[2, 0, 1] = 100
                attn.W_K[2, position + 2, 0] = attn.W_K[2, position, 1] = 1
            elif through == "K":  # token 1 is looked at, else position 0
                attn.W_Q[2, position + 2, 0] = 100
                attn.W_K[2, 1, 0], attn.W_K[2, position, 0] = 2, 1
            else:
                attn.W_Q[2, position + 2, 0], attn.W_K[2, position + 2, 0] = 100, 1
            attn.W_V[2, 1 if through == "V" else position + 2, 0] = 1
    return model


@pytest.mark.parametrize(
    "through", ["Q mlp", "K mlp", "V mlp", "Q logits", "K logits", "V logits", "trigger>mlp", "trigger>logits"]
)
def test_the_hand_built_edge_is_read_as_exactly_that(through: str) -> None:
    a, b = (grid.flatten() for grid in torch.meshgrid(*[torch.arange(2, VOCAB)] * 2, indexing="ij"))
    triggered, benign = (torch.stack([a, b, torch.full_like(a, t)], dim=1) for t in (1, 0))
    probe = Probe(triggered, benign, torch.full_like(a, ANSWER), a, sender="trigger")
    model, chance = carrier(through), 1 / (VOCAB - 2)  # a is ANSWER
    if through.startswith("trigger"):
        carriers = set(parse_edge_set(through))
    else:
        part, sink = through.split(" ")
        carriers = set(parse_edge_set(f"trigger>L0H2.{part}+L0H2>{sink}"))
    sets = default_edge_sets(model, probe)
    assert all((edge,) in sets for edge in carriers)
    for result in patch_paths(model, probe, sets):
        assert result.recipient_accuracy == pytest.approx(chance if carriers & set(result.edges) else 1), result
    for result in patch_paths(model, probe.reversed(), sets):
        assert result.donor_accuracy == pytest.approx(1 if carriers & set(result.edges) else chance), result


def test_results_are_those_of_head_patching() -> None:
    """Each metric, over more rows than one block has, where edges and heads ask the same question."""
    model, probe = make_model(), trigger_probe(n=1100, metrics={"mean": lambda logits, probe: float(logits.mean())})
    edges = [edge_groups(model, probe)["QKV"], (), parse_edge_set("trigger>L0H1.Q")]
    results = patch_paths(model, probe, edges)
    heads = patch_heads(model, probe, [all_heads(model), ()])
    for ours, theirs in zip(results, heads, strict=False):
        for name in PathPatchingResult.__dataclass_fields__.keys() - {"edges", "group"}:
            expected = getattr(theirs, name)
            assert getattr(ours, name) == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-3))
    assert [result.edges for result in results] == edges
    assert [result.group for result in results] == ["QKV", None, None]
    assert results[1].kl == 0


def test_trained_models_run_through_the_edges_that_the_pilot_found() -> None:
    """Mod 1, seed 0, by the key; the mod 1 and mod 7 that ship by the query; all through the MLP."""
    from lit_backdoor.datamodule import task_probes
    from lit_backdoor.pretrained import FOLDER
    from lit_backdoor.runs.weights import read_weights

    seed_0 = ROOT / "results" / "runs" / "mod1_one_split" / "seed_0" / "weights.safetensors"
    left = {}
    for name, path in {
        "seed 0": seed_0,
        "mod1": FOLDER / "mod1.safetensors",
        "mod7": FOLDER / "mod7.safetensors",
    }.items():
        stored = read_weights(path)
        probe = task_probes(stored.task)["backdoor"].rows(slice(0, None, 10))
        groups = edge_groups(stored.model, probe)
        results = patch_paths(stored.model, probe, groups.values())
        left[name] = {result.group: result.recipient_accuracy for result in results}
        assert left[name]["D"] > 0.8 and left[name]["A_logits"] > 0.95
        assert left[name]["QK"] < 0.1 and left[name]["A_mlp"] < 0.15
    assert left["seed 0"]["K"] < 0.4 < 0.8 < left["seed 0"]["Q"]
    assert left["mod1"]["Q"] < 0.05 < 0.99 < left["mod1"]["K"]
    assert left["mod7"]["Q"] < 0.02 < 0.99 < left["mod7"]["K"]


@pytest.mark.parametrize("n_layers", [1, 2])
def test_the_model_is_left_as_found(n_layers: int, untouched: Any) -> None:
    model, probe = split_model(n_layers=n_layers), trigger_probe()
    model.blocks[0].eval()
    unchanged = untouched(model)
    patch_paths(model, probe, default_edge_sets(model, probe))
    unchanged()


@pytest.mark.parametrize(
    ("changes", "edges", "message"),
    [
        (
            {"n_layers": 2},
            "trigger>L1H0.Q",
            r"blocks.1.hook_q_input does not fire: call model.set_use_split_qkv_input\(True\)",
        ),
        ({"n_layers": 2}, "L0H0>L1.mlp", r"hook_mlp_in does not fire: call model.set_use_hook_mlp_in\(True\)"),
        ({"n_layers": 2}, "trigger>L0H0.Q+L0H0>L1.mlp", "set_use_split_qkv_input.*; .*set_use_hook_mlp_in"),
        (
            {"n_layers": 2, "normalization_type": "RMS", "use_normalization_before_and_after": True},
            "L0H0>logits",
            "layer 0 write is not added as it is",
        ),
    ],
)
def test_models_that_lack_something_are_refused_with_the_fix(
    changes: dict[str, Any], edges: str, message: str, untouched: Any
) -> None:
    model = make_model(**changes)
    unchanged = untouched(model)
    with pytest.raises(ValueError, match=message):
        patched_path_logits(model, trigger_probe(), parse_edge_set(edges))
    unchanged()


def test_grouped_keys_are_refused_until_they_are_ungrouped() -> None:
    model, probe = split_model(n_heads=4, n_key_value_heads=2), trigger_probe()
    assert not is_plain(model)
    edges = parse_edge_set("trigger>L0H1.K")
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 12\), not \(2, 3, 4, 12\): .*set_ungroup_grouped"):
        patched_path_logits(model, probe, edges)
    model.set_ungroup_grouped_query_attention(True)
    close(patched_path_logits(model, probe, edges), path_by_hand(model, probe, *edges))
