"""The columns of tables, which are promises to whoever reads them."""

import pytest

from lit_backdoor.functional import HeadAttribution, PatchingResult, PathPatchingResult
from lit_backdoor.runs.schema import columns

SCORES = "n_examples,recipient_accuracy,donor_accuracy,other_rate,logit_diff,log_prob,kl"


@pytest.mark.parametrize(
    ("result", "promised"),
    [
        (HeadAttribution, "step,probe,layer,head,mean_logit,mean_logit_centered,top_count,n_examples"),
        (PatchingResult, f"step,probe,recipient,donor,ablation,heads,{SCORES}"),
        (PathPatchingResult, f"step,probe,recipient,donor,edges,group,{SCORES}"),
    ],
)
def test_the_promised_columns_come_first_in_their_order(result: type, promised: str) -> None:
    assert ",".join(column.name for column in columns(result)).startswith(promised)
