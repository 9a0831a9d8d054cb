"""The LightningModule around a HookedTransformer with hooks of the user's own."""

import torch
from lightning.pytorch import Trainer

from lit_backdoor.datamodule import BackdoorDataModule
from lit_backdoor.module import BackdoorModule


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
