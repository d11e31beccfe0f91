"""What questions would cost: their videos are fetched and probed as for an answer, and then nothing is run."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from occam.errors import InvalidInput
from occam.stats import StageStats
from services.conversations import Conversations
from services.estimate_schemas import EstimateBody, EstimateRequest, ExpectedSeconds, ExpectedTokens
from services.job_schemas import JobQuestion, JobRequest, VideoName
from services.jobs import Jobs
from services.messages import Forecast, FrameChoice, Question, Source
from services.quotas import Quotas
from services.remote import together


@dataclass(frozen=True, kw_only=True)
class _Share:
    """Questions that share a state.

    follow_ups: whether they are turns of one conversation, else each is on its own
    """

    model: str
    frames: int
    stats: tuple[StageStats, ...]
    forecast: Forecast
    follow_ups: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts; answers that are not there yet are not counted."""
        forecast, turns = self.forecast, self.forecast.turns
        again = sum(sum(turns[:index]) for index in range(len(turns))) if self.follow_ups else 0
        return len(turns) * (forecast.state_tokens + forecast.past) + sum(turns) + again

    @property
    def prefill_s(self) -> float:
        """Of the state, if it is not cached, and of all turns."""
        forecast = self.forecast
        tokens = (0 if forecast.cached else forecast.state_tokens) + forecast.past + sum(forecast.turns)
        return tokens * forecast.token_s


class Estimates:
    """Estimates of queries and of jobs."""

    def __init__(self, conversations: Conversations, jobs: Jobs, quotas: Quotas, concurrency: int) -> None:
        """concurrency: videos that are looked at side by side, at most."""
        self._conversations = conversations
        self._jobs = jobs
        self._quotas = quotas
        self._concurrency = concurrency

    async def of_query(self, body: EstimateRequest, tenant: str) -> EstimateBody:
        """What a query would cost; it raises what the query would before its first frame is decoded."""
        async with self._conversations.until(self._conversations.deadline(body.deadline_s)):
            source, digest, stats = await self._found(body.url, body.model)
            question = Question(
                text=body.question,
                tenant=tenant,
                model=body.model,
                video_id=body.video_id,
                sources=() if source is None else (source,),
                session_id=body.session_id,
                frames=body.frame_choice,
                pruning=body.pruning_choice,
                sampling=body.sampling,
                digest=digest,
            )
            share = await self._share(question, (body.question,), stats)
        return _summed([share], requests=None)

    async def of_job(self, body: JobRequest, tenant: str) -> EstimateBody:
        """What a job would cost; QuotaExceeded before any video is fetched, then what the first broken one raises.

        That names the video, as the body has it.
        """
        self._jobs.check_size(body)
        queries = await asyncio.to_thread(body.queries)
        await self._quotas.take_addresses(tenant, sum(video.url is not None for video in body.videos))
        slots = asyncio.Semaphore(self._concurrency)

        async def of_video(number: int, video: VideoName) -> list[_Share]:
            async with slots:
                try:
                    return await self._of_video(video, queries, body.follow_ups, tenant)
                except InvalidInput as error:
                    if error.param in (None, "url", "video_id"):  # else it is not the video that is at fault
                        error.args = (error.message, f"videos.{number}")
                    raise

        async with self._conversations.until(self._conversations.deadline()):
            shares = await together(*(of_video(number, video) for number, video in enumerate(body.videos)))
        return _summed([share for each in shares for share in each], requests=body.total)

    async def _of_video(
        self, video: VideoName, queries: Sequence[JobQuestion], follow_ups: bool, tenant: str
    ) -> list[_Share]:
        source, digest, stats = await self._found(video.url, queries[0].model)
        groups: dict[str, list[JobQuestion]] = {}
        for query in queries:
            name = repr((query.model, query.frame_choice, query.pruning_choice))
            groups.setdefault(name, []).append(query)
        shares = []
        for group in groups.values():
            question = Question(
                text=group[0].question,
                tenant=tenant,
                model=group[0].model,
                video_id=video.id,
                sources=() if source is None else (source,),
                frames=group[0].frame_choice,
                pruning=group[0].pruning_choice,
                digest=digest,
            )
            shares.append(await self._share(question, [each.question for each in group], stats, follow_ups))
            stats = ()
        return shares

    async def _found(
        self, url: str | None, model: str | None
    ) -> tuple[Source | None, str | None, tuple[StageStats, ...]]:
        """What an address names, with its kind and its digest, and what fetching it took."""
        if url is None:
            return None, None, ()
        name = await self._conversations.model(model, ())
        described = await self._conversations.describe(name, Source(url=url, kind=None), FrameChoice())
        medium = described.medium
        return Source(url=url, kind=medium.kind), medium.digest, described.stats

    async def _share(
        self, question: Question, texts: Sequence[str], stats: tuple[StageStats, ...], follow_ups: bool = False
    ) -> _Share:
        session, more, forecast = await self._conversations.foresee(question, texts)
        return _Share(
            model=session.model,
            frames=sum(len(medium.indices) for medium in session.media),
            stats=(*stats, *more),
            forecast=forecast,
            follow_ups=follow_ups,
        )


def _summed(shares: Sequence[_Share], requests: int | None) -> EstimateBody:
    forecasts = [share.forecast for share in shares]
    fetch_s = sum(stage.seconds for share in shares for stage in share.stats)
    prefill_s = sum(share.prefill_s for share in shares)
    models = {share.model for share in shares}
    return EstimateBody(
        model=models.pop() if len(models) == 1 else None,
        frames=sum(share.frames for share in shares),
        visual_tokens=ExpectedTokens(
            encoded=sum(each.encoded * len(each.turns) for each in forecasts),
            stage1=_expected([each.stage1 for each in forecasts], forecasts),
            stage2=_expected([each.stage2 for each in forecasts], forecasts),
        ),
        prompt_tokens=sum(share.prompt_tokens for share in shares),
        cached=all(each.cached for each in forecasts),
        tokens_now=sum(each.encoded for each in forecasts if not each.cached),
        seconds=ExpectedSeconds(
            fetch=fetch_s,
            decode=sum(each.decode_s for each in forecasts),
            encode=sum(each.encode_s for each in forecasts),
            prefill=prefill_s,
            total=fetch_s + sum(each.both_s for each in forecasts) + prefill_s,
        ),
        kv_bytes=sum(each.kv_bytes for each in forecasts),
        basis="measured" if all(each.measured for each in forecasts) else "default",
        requests=requests,
    )


def _expected(counts: Sequence[int | None], forecasts: Sequence[Forecast]) -> int | None:
    """The sum over all questions, None where any is not known."""
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return sum(count * len(each.turns) for count, each in zip(known, forecasts, strict=True))
