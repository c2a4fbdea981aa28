"""A run with a vLLM server, to be killed: prints the server's number, and waits for a rollout.

python vllm_run.py MODEL FOLDER
"""

import sys
from pathlib import Path

from g2rpo_trainer.config import Model, Rollout
from g2rpo_trainer.inputs.prompts import encode_prompts
from g2rpo_trainer.model.loading import load_policy
from g2rpo_trainer.rollout.requests import make_requests
from g2rpo_trainer.rollout.synchronised import weights_of
from g2rpo_trainer.rollout.vllm_engine import VLLMOptions
from g2rpo_trainer.rollout.vllm_server import VLLMServers
from g2rpo_trainer.tasks import TASKS

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    policy = load_policy(model, device="cpu", model=Model())
    options = VLLMOptions(model, "float32", False, 0.9, None, 0, False, False)
    servers = VLLMServers(options, [None], Path(folder), start_seconds=120)
    servers.load(weights_of(policy))
    records = [TASKS["ocr"].item(0, 0).record]
    requests = make_requests(
        policy, encode_prompts(policy, records), records, Rollout(max_completion_length=48), [0]
    )
    print(*servers.pids, flush=True)
    servers.generate(requests)
