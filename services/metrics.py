"""Every metric, in two ledgers, over all processes of a node.

Answer metrics are recorded once per finished answer, in the ingress, from the `usage` object the client gets: only they
equal the sum of `usage`. Work metrics are recorded where work happens, retried and cancelled work included.

Each process of a deployment writes its numbers into files in one folder of its node (`services/metric_files.py`), and
whoever renders reads all of them. So a number appears exactly once, and survives the process that counted it.
"""

import os
from collections.abc import Iterable
from itertools import product

from prometheus_client import Counter, Gauge, Histogram, values

from occam.stats import StageStats, Usage
from occam.types import Evidence
from services.metric_files import Identity
from services.settings import METRICS_VARIABLE, counting_folder

# Before the first metric: it is the class of all their values. Without a folder numbers stay in the process.
if (_folder := counting_folder()) is not None:
    os.environ[METRICS_VARIABLE] = str(_folder)
    values.ValueClass = values.MultiProcessValue(Identity(_folder))  # type: ignore[no-untyped-call]

_RATIOS = (0.005, 0.01, 0.014, 0.02, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0)
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_FAST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_FRAMES = (1, 2, 4, 8, 16, 32, 64, 128)

_NO_VIDEO = (
    "unsupported_video", "video_too_large", "forbidden_source", "source_unavailable", "invalid_input", "decode_timeout",
    "internal",
)  # fmt: skip
_NOT_ADMITTED = (
    "overloaded", "quota_exceeded", "too_many_jobs", "invalid_api_key", "cross_site", "store_unavailable",
    "replica_lost",
)  # fmt: skip


def _from_zero(counter: Counter, *known: Iterable[str]) -> Counter:
    """A counter with its labels' known values at 0 from the start, for only then is a first event an increase."""
    for named in product(*known):
        counter.labels(*named)
    return counter


# The answer ledger: the ingress alone writes it.
REQUESTS = Counter("occam_requests_total", "Requests that ended, however they did.", ["route", "outcome"])
REQUEST_SECONDS = Histogram("occam_request_seconds", "Request in to last byte out.", ["route"], buckets=_SECONDS)
TTFT_SECONDS = Histogram("occam_ttft_seconds", "Request in to first text.", ["model", "cache"], buckets=_SECONDS)
VISUAL_TOKENS = Counter(
    "occam_visual_tokens_total", "Visual tokens in context of finished answers.", ["model", "strategy", "stage"]
)
RETENTION_RATIO = Histogram(
    "occam_token_retention_ratio",
    "Visual tokens kept / encoded of finished answers.",
    ["model", "strategy", "stage"],
    buckets=_RATIOS,
)

# The work ledger.
WORK_TOKENS = Counter("occam_work_tokens_total", "Tokens that a stage took in (generate: put out).", ["model", "stage"])
TIME_PER_OUTPUT_TOKEN = Histogram(
    "occam_time_per_output_token_seconds",
    "Time per token of an answer, waiting in between included.",
    ["model"],
    buckets=_FAST_SECONDS,
)
STAGE_SECONDS = Histogram(
    "occam_stage_seconds", "Time that a stage took, its share of passes with others.", ["stage"], buckets=_SECONDS
)
FRAME_RETENTION_RATIO = Histogram(
    "occam_frame_retention_ratio", "Patches kept / encoded of one frame.", ["model"], buckets=_RATIOS
)
FRAMES_DECODED = Counter("occam_frames_decoded_total", "Frames that came out of a decoder.", ["backend"])
DECODE_FAILURES = _from_zero(
    Counter("occam_decode_failures_total", "Failures to fetch, read or decode a video or image.", ["reason"]), _NO_VIDEO
)
BATCH_FRAMES = Histogram("occam_batch_frames", "Frames that one pass of the tower took.", buckets=_FRAMES)
BATCH_SEQUENCES = Histogram("occam_batch_sequences", "Answers that one pass of the model took on.", buckets=_FRAMES)
WORKERS = Gauge("occam_workers", "Workers whose model is loaded.", ["model"], multiprocess_mode="livesum")
QUEUE_DEPTH = Gauge("occam_queue_depth", "Questions taken and unfinished.", multiprocess_mode="livesum")
QUEUED_VISUAL_TOKENS = Gauge(
    "occam_queued_visual_tokens", "Visual tokens admitted and not yet encoded.", multiprocess_mode="livesum"
)
KV_REQUESTS = Counter("occam_kv_requests_total", "Lookups of a cache tier.", ["tier", "result"])
KV_SECONDS = Histogram("occam_kv_seconds", "Time that a cache operation took.", ["tier", "op"], buckets=_FAST_SECONDS)
KV_BYTES = Counter("occam_kv_bytes_total", "Bytes of states read from and written to a tier.", ["tier", "direction"])
KV_ERRORS = _from_zero(
    Counter("occam_kv_errors_total", "Cache operations that failed and only cost time.", ["tier", "reason"]),
    ("memory", "node", "redis", "embeddings"),
    ("unavailable", "corrupt", "backlog"),
)
SPANS = _from_zero(
    Counter("occam_spans_total", "Spans of traces that left a process, or that no collector took.", ["result"]),
    ("sent", "lost"),
)
REJECTIONS = _from_zero(
    Counter("occam_rejections_total", "Requests that were not admitted.", ["reason"]), _NOT_ADMITTED
)
JOB_QUESTIONS = _from_zero(
    Counter("occam_job_questions_total", "Questions of jobs that have their line.", ["outcome"]), ("ok", "failed")
)
JOB_WAITS = Counter("occam_job_waits_total", "Times that a job waited to ask again, or to keep a line.", ["reason"])
CANCELLATIONS = _from_zero(
    Counter("occam_cancellations_total", "Work stopped because the client went away.", ["stage"]),
    ("decode", "prefix", "generate"),
)


def record_answer(model: str, strategy: str, usage: Usage) -> None:
    """Enter one finished answer from its usage object into the answer ledger."""
    tokens = usage.visual_tokens
    for stage, count in (("encoded", tokens.encoded), ("stage1", tokens.stage1), ("stage2", tokens.stage2)):
        VISUAL_TOKENS.labels(model, strategy, stage).inc(count)
        if stage != "encoded" and tokens.encoded:
            RETENTION_RATIO.labels(model, strategy, stage).observe(count / tokens.encoded)


def record_stages(stats: Iterable[StageStats]) -> None:
    """Enter the time that stages worked, whatever became of the request."""
    for stage in stats:
        STAGE_SECONDS.labels(stage.stage).observe(stage.work_s)


def record_work(model: str, stats: Iterable[StageStats]) -> None:
    """Enter stages that ran on the engine: time and tokens."""
    for stage in stats:
        record_stages((stage,))
        tokens = stage.tokens_out if stage.stage == "generate" else stage.tokens_in
        WORK_TOKENS.labels(model, stage.stage).inc(tokens)
        if stage.stage == "generate" and tokens:
            TIME_PER_OUTPUT_TOKEN.labels(model).observe(stage.seconds / tokens)


def record_evidence(model: str, evidence: Evidence) -> None:
    """Enter how much of each frame reached the upper layers."""
    for frame in evidence.frames:
        FRAME_RETENTION_RATIO.labels(model).observe(frame.kept / frame.of)
