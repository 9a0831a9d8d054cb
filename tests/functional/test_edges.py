"""What edges are called, which there are, and which are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_backdoor.functional import (
    Edge,
    Head,
    Receiver,
    all_edges,
    default_edge_sets,
    edge_groups,
    edge_name,
    edge_set_name,
    parse_edge_set,
    patch_paths,
)
from tests.helpers.tiny_models import make_model, make_probe, split_model, trigger_probe


def test_the_edges_of_one_layer() -> None:
    model = make_model(n_heads=1)
    names = [edge_name(edge) for edge in all_edges(model, trigger_probe())]
    assert names == [
        *("trigger>L0H0.Q", "trigger>L0H0.K", "trigger>L0H0.V", "trigger>mlp", "trigger>logits"),
        *("L0H0>mlp", "L0H0>logits"),
    ]
    groups = edge_groups(make_model(n_heads=2), trigger_probe())
    assert {group: edge_set_name(edges) for group, edges in groups.items()} == {
        "Q": "trigger>L0H0.Q+trigger>L0H1.Q",
        "K": "trigger>L0H0.K+trigger>L0H1.K",
        "V": "trigger>L0H0.V+trigger>L0H1.V",
        "QK": "trigger>L0H0.Q+trigger>L0H0.K+trigger>L0H1.Q+trigger>L0H1.K",
        "QKV": "trigger>L0H0.Q+trigger>L0H0.K+trigger>L0H0.V+trigger>L0H1.Q+trigger>L0H1.K+trigger>L0H1.V",
        "D": "trigger>mlp+trigger>logits",
        "A_mlp": "L0H0>mlp+L0H1>mlp",
        "A_logits": "L0H0>logits+L0H1>logits",
    }
    sets = default_edge_sets(make_model(n_heads=2), trigger_probe())
    assert sets[0] == () and len(sets) == len(set(sets)) == 1 + 8 + 12 + 2
    assert parse_edge_set("trigger>L0H1.K+trigger>L0H1.Q") in sets
    assert len(default_edge_sets(make_model(n_heads=2), trigger_probe(), max_single=11)) == 1 + 8


def test_a_trigger_in_front_has_no_query_edge() -> None:
    model, probe = make_model(n_heads=1), trigger_probe(at=(0,))
    names = [edge_name(edge) for edge in all_edges(model, probe)]
    assert names == ["trigger>L0H0.K", "trigger>L0H0.V", "L0H0>mlp", "L0H0>logits"]
    assert set(edge_groups(model, probe)) == {"K", "V", "QKV", "A_mlp", "A_logits"}
    deeper = [edge_name(edge) for edge in all_edges(make_model(n_heads=1, n_layers=2), probe)]
    assert "trigger>L0H0.Q" in deeper and "trigger>L1H0.Q" not in deeper and "L0H0>L1H0.K" in deeper
    assert probe.differing_positions == (0,)


def test_an_mlp_beside_the_heads_does_not_read_them() -> None:
    behind, beside = (
        [edge_name(edge) for edge in all_edges(make_model(n_layers=2, parallel_attn_mlp=parallel), trigger_probe())]
        for parallel in (False, True)
    )
    assert {*behind} - {*beside} == {f"L{layer}H{head}>L{layer}.mlp" for layer in (0, 1) for head in (0, 1, 2)}
    assert {*beside} < {*behind} and "L0H0>L1.mlp" in beside


numbers = st.integers(0, 12)
edges_of_all_kinds = st.builds(
    Edge,
    st.sampled_from(["trigger", "embed", "L1"]) | st.builds(Head, numbers, numbers),
    st.tuples(st.sampled_from("QKV"), numbers, numbers).map(lambda fields: Receiver(*fields))
    | st.tuples(st.just("mlp"), st.none() | numbers).map(lambda fields: Receiver(*fields))
    | st.just(Receiver("logits")),
    st.none() | numbers,
)


@settings(deadline=None, derandomize=True)
@given(st.sets(edges_of_all_kinds, max_size=5))
def test_names_of_edge_sets_go_both_ways(edges: set[Edge]) -> None:
    name = edge_set_name(edges)
    assert set(parse_edge_set(name)) == edges
    assert edge_set_name(parse_edge_set(name)) == name == edge_set_name(sorted(edges, key=str))


def test_names_in_order() -> None:
    name = "trigger>L0H2.Q+trigger>L0H10.V+trigger>L0.mlp+trigger>L1H0.K+trigger@2>L1.mlp+L0H1>L1H1.Q+L0H1@0>logits"
    assert edge_set_name(reversed(parse_edge_set(name))) == name
    assert edge_set_name(()) == "none" and parse_edge_set("none") == ()


@pytest.mark.parametrize(
    "name", ["", "L0H2.Q", "trigger>", "trigger>L0H2", "a b>mlp", "L0H2>L1.Q", "trigger>mlp+", "L0H2@-1>mlp"]
)
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a set of edges"):
        parse_edge_set(name)


@pytest.mark.parametrize(
    ("n_layers", "edges", "message"),
    [
        (1, "embed>mlp", "no edge embed>mlp: edges lead from trigger or a head to .* to mlp, logits; .* L0H0 to L0H2"),
        (1, "trigger>L0H3.Q", "no edge trigger>L0H3.Q"),
        (1, "L0H1>L0H2.Q", "no edge L0H1>L0H2.Q"),
        (1, "trigger>L0.mlp", "no edge trigger>L0.mlp"),
        (2, "trigger>mlp", "no edge trigger>mlp.* to L0.mlp, L1.mlp, logits"),
        (2, "L1H0>L0.mlp", "no edge L1H0>L0.mlp"),
        (1, "trigger>L0H0.Q", r"trigger>L0H0.Q carries nothing: .* differ at the positions \[0\].* read at 2"),
        (2, "trigger@1>L0H0.K", "trigger@1>L0H0.K carries nothing"),
        (1, "L0H0@1>mlp", "L0H0@1>mlp carries nothing"),
        (1, "L0H0@3>mlp", "L0H0@3>mlp carries nothing"),
    ],
)
def test_edges_that_are_not_there_are_refused(n_layers: int, edges: str, message: str) -> None:
    model, probe = split_model(n_layers=n_layers), trigger_probe(at=(0,))
    with pytest.raises(ValueError, match=message):
        patch_paths(model, probe, [parse_edge_set(edges)])


@pytest.mark.parametrize("sender", ["", "L0H2", "a>b", "two words", 3])
def test_a_sender_that_no_edge_can_be_named_after_is_refused(sender: Any) -> None:
    with pytest.raises(ValueError, match="sender is"):
        make_probe(sender=sender)
