"""The LightningModule around a HookedTransformer with hooks of the user's own."""

import pytest
import torch
from lightning.pytorch import Trainer

from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.module import BackdoorModule, RuleMetrics
from lit_backdoor.task import Examples


def test_a_hook_of_the_users_own_has_its_say_in_training() -> None:
    """Embeddings that a hook takes away get no gradient, so that without weight decay they stay as they are."""
    data = BackdoorDataModule(moduli=[7, 3])
    module = BackdoorModule(moduli=[7, 3], n_heads=2, d_model=8, d_mlp=8, weight_decay=0.0, last_position=False)
    module.model.add_hook("hook_embed", lambda embed, hook: torch.zeros_like(embed))
    before = module.model.W_E.detach().clone()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Trainer(accelerator="cpu", max_steps=2, max_epochs=-1, limit_val_batches=0, **quiet).fit(module, data)
    assert torch.equal(module.model.W_E, before)
    assert len(module.model.hook_dict["hook_embed"].fwd_hooks) == 1


def test_the_loss_of_each_rule_adds_up_to_the_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    answers = torch.randint(5, (9,), generator=generator)
    rules = torch.tensor([0, 1, 0, 0, 1, 0, 1, 0, 0])
    losses = torch.nn.functional.cross_entropy(logits, answers, reduction="none")
    measured = RuleMetrics(3, rule_losses=True)
    measured.update(losses, logits, Examples(torch.zeros(9, 3, dtype=torch.int64), answers, rules))
    values = {name: value.item() for name, value in measured.compute().items()}
    assert values["benign_loss"] == pytest.approx(losses[rules == 0].mean().item(), abs=1e-12)
    assert values["backdoor_loss"] == pytest.approx(losses[rules == 1].mean().item(), abs=1e-12)
    assert values["loss"] == pytest.approx((6 * values["benign_loss"] + 3 * values["backdoor_loss"]) / 9, abs=1e-12)
    assert values["rule2_loss"] != values["rule2_loss"]  # no example
