"""The engine: token ids in, token ids out. It knows no text, job, database or network.

    from penstock_engine import Engine, EngineConfig, Request, SamplingParams

    engine = Engine.from_folder("path/to/model", EngineConfig(max_running=64))
    engine.submit(Request("r1", prompt_ids=[1, 2, 3], sampling=SamplingParams(temperature=0, max_tokens=16)))
    while engine.has_work:
        for delta in engine.step().deltas:
            print(delta.token_id)

Reading order, from the data to the device:

    request         what is asked, what is answered, where each generation stands in between
    batch           one step's state
    scheduler       who runs in each step; with waiting, fairness, page_allocator, radix_cache, reuse, holdings (what
                    each has of the pool) and flights (steps that were launched), the whole policy, free of torch
    choices         when a request of several choices has begun and ended, and which of them are told
    engine          submit, abort, step: the parts put together; a step on its way through is a flight
    bisection       who made a step fail
    determinism     whether numbers depend on neighbours, tried out at start
    measures        how long each request took and what it cost
    trace           a record of the last steps
    tables          what the forward pass must know of each running generation, as arrays
    forward_batch   a step as tensors, which staging sends to the device in one copy
    graphs          decoding steps recorded, and replayed over buffers that stay where they are
    runner          the only part that touches the device; what it launched is pending until its result is there
    kv_pool         the memory behind the pages
    models/         the architectures, from layers/ (attention, feed_forward, linear, norm, rotary); models/bridge runs
                    transformers' own code with our attention in it
    kernel_choice   which layers give way to faster ones (layers/cpu, layers/gpu, prepack), and what is told of it
    scoring         log probabilities of the prompt's own tokens, and whole distributions for who reads them
    grammar, masks  which tokens an output's grammar lets come next
    sampler         logits to tokens: penalties first, then filters, then a draw (drawing) with philox's noise
    model_config, rope_config, config_fields, loading, sizing, weight_bytes, admission, stats, config, errors
                    what each says
"""

from penstock_engine.config import EngineConfig
from penstock_engine.engine import Engine
from penstock_engine.errors import (
    AlreadyFinished,
    EngineBusy,
    EngineError,
    InvalidConfig,
    InvalidGrammar,
    InvalidRequest,
    InvalidSampling,
    ModelCorrupt,
    ModelLoadError,
    ModelNotFound,
    ModelUnsupported,
    PromptTooLong,
    QueueFull,
    RequestRefused,
    RequestTooLarge,
    ScoringFailed,
    StepFailed,
)
from penstock_engine.measures import RequestMeasures, StepShare
from penstock_engine.request import (
    FinishReason,
    Grammar,
    PromptLogprobs,
    Request,
    RequestFailure,
    SamplingParams,
    TokenDelta,
)
from penstock_engine.stats import EngineStats, StepCounts, StepOutput

__all__ = [
    "AlreadyFinished",
    "Engine",
    "EngineBusy",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "Grammar",
    "InvalidConfig",
    "InvalidGrammar",
    "InvalidRequest",
    "InvalidSampling",
    "ModelCorrupt",
    "ModelLoadError",
    "ModelNotFound",
    "ModelUnsupported",
    "PromptLogprobs",
    "PromptTooLong",
    "QueueFull",
    "Request",
    "RequestFailure",
    "RequestMeasures",
    "RequestRefused",
    "RequestTooLarge",
    "SamplingParams",
    "ScoringFailed",
    "StepCounts",
    "StepFailed",
    "StepOutput",
    "StepShare",
    "TokenDelta",
]
