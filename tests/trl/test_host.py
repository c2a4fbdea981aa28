"""The methods of TRL that are overridden are those that this package was written for."""

from __future__ import annotations

import inspect

import pytest
from trl import GRPOTrainer

from g2rpo_trl import G2RPOTrainer

OVERRIDDEN = {
    "_calculate_rewards": "self, inputs, prompts, completions, completion_ids_list",
    "_generate_and_score_completions": "self, inputs",
    "_get_per_token_logps_and_entropies": (
        "self, model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, "
        "compute_aux_loss, pixel_values, image_grid_thw, num_images, pixel_attention_mask, "
        "spatial_shapes, num_tiles, image_sizes, token_type_ids, mm_token_type_ids, "
        "image_position_ids"
    ),
    "_compute_loss": "self, model, inputs",
    "_save_checkpoint": "self, model, trial",
    "_load_optimizer_and_scheduler": "self, checkpoint",
}


def test_the_list_is_whole():
    own = {name for name, value in vars(G2RPOTrainer).items() if inspect.isfunction(value)}
    assert {name for name in own if hasattr(GRPOTrainer, name)} == {"__init__", *OVERRIDDEN}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_method_has_the_parameters_that_it_had(name):
    found = ", ".join(inspect.signature(getattr(GRPOTrainer, name)).parameters)
    assert found == OVERRIDDEN[name], (
        f"this release of TRL has another GRPOTrainer.{name}({found}); compare its body with what "
        "adapters/g2rpo_trl/trainer.py takes from it before the supported range is widened"
    )
